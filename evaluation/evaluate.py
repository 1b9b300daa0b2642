"""Measure the published models once, on the test split.

    python -m evaluation.evaluate

Writes to results/evaluate: metrics.json, whose keys docs/likelihood.md explains; headlines.json with the few figures
that DVC shows; images/reconstructions.png; images/closest.png, the samples that are nearest to training images, above
these. Prints the few figures, and sentences that say what is good or bad about the models and how to improve them.
`evaluation.images` in params.yaml limits how many test images are measured, and `evaluation.features` names the network
that judges (docs/distances.md). Figures that need a classifier, or a network that is not here, are left out; the output
and metrics.json say why.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from tessera import entry, paths
from tessera.parameters import Params

# The sections and values of params.yaml that change what this stage makes.
USES = ("stage2_prior.counts", "evaluation", "sampling.decoder")
MEMORY = "runtime.batch_size below 64"  # by which it takes less memory

RESULTS = paths.RESULTS / "evaluate"
RECONSTRUCTIONS = RESULTS / "images" / "reconstructions.png"
CLOSEST = RESULTS / "images" / "closest.png"


def table(metrics: dict[str, Any]) -> str:
    """Sections and figures, a line each."""
    return "\n".join(_lines(metrics, ""))


def _lines(figures: dict[str, Any], margin: str) -> Iterator[str]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield f"{margin}{name}"
            yield from _lines(value, f"{margin}  ")
        else:
            yield f"{margin}{name:<26} {_shown(value):>11}"


def _shown(value: float | int | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Check that everything belongs together, measure, write. Processes share the images; the main process writes."""
    from evaluation.figures import headlines
    from evaluation.findings import findings
    from evaluation.measurements import Evaluation
    from evaluation.usage import measured
    from sampling.edits import tell_of_edits
    from tessera.artifacts.files import json_text, write_text
    from tessera.images.grids import save_grid, stacked_grid
    from tessera.launch.devices import accelerator

    processes = accelerator(params.runtime, apart=True)
    counts, section = params.stage2_prior.counts.arguments(), params.evaluation
    features, decoder = section.features.values(), params.sampling.decoder
    evaluation = Evaluation(counts, section.images, processes.device, params.runtime.batch_size, features, decoder)
    tell_of_edits(evaluation.pipeline, params)
    metrics = evaluation.metrics()
    if processes.is_main_process:
        save_grid(evaluation.reconstructions(), RECONSTRUCTIONS)
        if evaluation.distribution:
            save_grid(stacked_grid(evaluation.distribution.closest), CLOSEST)
        write_text(RESULTS / "metrics.json", json_text(metrics))
        write_text(RESULTS / "headlines.json", json_text(first := headlines(metrics)))
        print(table(first | {name: metrics[name] for name in ("unavailable",) if name in metrics}))
        total = len(evaluation.prepared["test"])
        if len(evaluation.rows) < total:
            print(f"measured on {len(evaluation.rows)} of the {total} test images, a fixed random choice")
        usage = measured(evaluation.codes["test"], evaluation.rows, evaluation.layout, evaluation.pipeline.vqvae.config)
        print("", *findings(metrics, usage, params), sep="\n")
        print(f"every figure: {RESULTS / 'metrics.json'} (docs/likelihood.md)")
        print(f"samples: {paths.SAMPLE_GRID}; reconstructions: {RECONSTRUCTIONS}")
    processes.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
