"""Compare runs: which parameters differ, which figures, and which is best: python -m tessera compare [RUN ...].

A RUN is a revision of Git (branch, tag, commit, HEAD~1), the name of a DVC experiment, or `workspace`: this folder as
it is. Without a RUN, HEAD and the workspace are compared; one RUN is compared with the workspace. Only parameters that
a run uses are shown, and of them those that differ. Figures come from results/STAGE/metrics.json. The best value of a
row has a `*`, where a figure has a direction and the runs can be compared by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="default: HEAD workspace")
    parser.add_argument("--all", action="store_true", help="every figure, and not the headlines alone")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows, with exact values, as CSV")
    arguments = parser.parse_args(argv)

    from tessera.artifacts.files import write_text
    from tessera.cli.compare.comparison import Comparison
    from tessera.cli.compare.revisions import WORKSPACE, read_run
    from tessera.cli.compare.tables import csv_rows, print_comparison

    names = list(dict.fromkeys(arguments.runs)) or ["HEAD"]
    if len(names) == 1 and names != [WORKSPACE]:
        names.append(WORKSPACE)
    comparison = Comparison([read_run(name) for name in names], every_figure=arguments.all)
    print_comparison(comparison)
    if arguments.csv:
        write_text(arguments.csv, csv_rows(comparison))
        print(f"{arguments.csv}: written")
    return 0
