"""Measure the published models once, on the test split.

    python -m evaluation.evaluate

Writes to results/evaluate: metrics.json, whose keys docs/likelihood.md explains; headlines.json with the few figures
that DVC shows; images/reconstructions.png. Prints the figures, and sentences that say what they mean.
`evaluation.images` in params.yaml limits how many test images are measured. Figures that need a classifier are left
out if there is none, and metrics.json says why.
"""

from __future__ import annotations

import argparse
from typing import Any

from tessera import entry, paths
from tessera.parameters import Params

USES = ("stage2_prior.counts", "evaluation")  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.batch_size below 64"  # by which it takes less memory

RESULTS = paths.RESULTS / "evaluate"
RECONSTRUCTIONS = RESULTS / "images" / "reconstructions.png"


def table(metrics: dict[str, Any]) -> str:
    """Sections and figures, a line each."""
    lines = []
    for section, figures in metrics.items():
        lines.append(section)
        for name, value in figures.items():
            if not isinstance(value, list):
                lines.append(f"  {name:<26}{value if isinstance(value, (str, int)) else format(value, '.4f'):>12}")
    return "\n".join(lines)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Check that everything belongs together, measure, write. Processes share the images; the main process writes."""
    from evaluation.figures import headlines
    from evaluation.findings import findings
    from evaluation.measurements import Evaluation
    from sampling.edits import tell_of_edits
    from tessera.artifacts.files import json_text, write_text
    from tessera.images.grids import save_grid
    from tessera.launch.devices import accelerator

    processes = accelerator(params.runtime, apart=True)
    counts, images = params.stage2_prior.counts.arguments(), params.evaluation.images
    evaluation = Evaluation(counts, images, processes.device, params.runtime.batch_size)
    tell_of_edits(evaluation.pipeline, params)
    metrics = evaluation.metrics()
    if processes.is_main_process:
        save_grid(evaluation.reconstructions(), RECONSTRUCTIONS)
        write_text(RESULTS / "metrics.json", json_text(metrics))
        write_text(RESULTS / "headlines.json", json_text(headlines(metrics)))
        print(table(metrics))
        total = len(evaluation.prepared["test"])
        if len(evaluation.rows) < total:
            print(f"measured on {len(evaluation.rows)} of the {total} test images, a fixed random choice")
        print("", *findings(metrics, evaluation.expected_usage()), sep="\n")
        print(f"samples: {paths.SAMPLE_GRID}; reconstructions: {RECONSTRUCTIONS}; every figure: docs/likelihood.md")
    processes.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
