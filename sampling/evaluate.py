"""Measure the published models once, on the test split.

    python -m sampling.evaluate

Writes results/evaluate/metrics.json (its keys: docs/likelihood.md) and images/reconstructions.png, and prints a table.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import command, paths
from common.params import Params

RESULTS = paths.RESULTS / "evaluate"


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
    """Check that everything belongs together, measure, write."""
    from common.artifacts import json_text, write_text
    from common.distributed import one_process
    from common.grids import save_grid
    from sampling.evaluation import Evaluation

    one_process(params.runtime.threads, "sampling.evaluate")
    evaluation = Evaluation(params.stage2_prior.counts, params.runtime.batch_size)
    metrics = evaluation.metrics()
    save_grid(evaluation.reconstructions(), RESULTS / "images" / "reconstructions.png")
    write_text(RESULTS / "metrics.json", json_text(metrics))
    print(table(metrics))


def main(argv: list[str] | None = None) -> int:
    return command.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
