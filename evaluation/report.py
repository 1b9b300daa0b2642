"""Write the report of a run: one page that shows what was made, how good it is, and what looks wrong.

    python -m evaluation.report
    python -m evaluation.report --compare HEAD pixelcnn workspace

Writes results/report/index.html, one file without scripts that asks for nothing from elsewhere. With --compare it
writes runs side by side, and no report: a RUN is a revision of Git, the name of a DVC experiment, or `workspace`, as
for `python -m tessera compare`. docs/guide/report.md says what is where.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tessera import entry, paths
from tessera.parameters import Params

# The sections of params.yaml that change what this stage makes: it shows all that the other stages use.
USES = (
    "data",
    "stage1_vqvae",
    "refine_decoder",
    "extract_codes",
    "stage2_prior",
    "stage2_prior.counts",
    "classifier",
    "sampling",
    "evaluation",
)

REPORT = paths.RESULTS / "report" / "index.html"
COMPARISON = paths.RESULTS / "comparison" / "index.html"
FOOT = "Written by python -m evaluation.report. Every figure is explained in docs/likelihood.md and docs/distances.md."


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Read what was published, and write the page."""
    from evaluation.report_page import Page, html
    from tessera.artifacts.files import write_text

    if arguments.compare:
        from evaluation.report_compare import comparison

        file = arguments.output or COMPARISON
        write_text(file, html(comparison(list(dict.fromkeys(arguments.compare)), FOOT)))
    else:
        from evaluation import report_codes, report_curves, report_run, report_sections
        from evaluation.report_published import Published

        file, published = arguments.output or REPORT, Published(params, arguments.params)
        made = (
            report_run.summary,
            report_sections.samples,
            report_sections.reconstructions,
            report_sections.account,
            report_codes.codes,
            report_codes.prior,
            report_curves.curves,
            report_sections.copies,
            report_sections.distances,
            report_run.what_was_run,
        )
        sections = [section(published) for section in made]
        write_text(file, html(Page(report_run.title(published), report_run.lead(published), sections, FOOT)))
    print(f"{file}: written; open it in a browser")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="runs to show side by side, in place of a report")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {REPORT}, or {COMPARISON}")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    raise SystemExit(main())
