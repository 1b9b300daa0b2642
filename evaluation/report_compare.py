"""Runs side by side as one page: what `python -m tessera compare` prints, with curves, bits and samples."""

from __future__ import annotations

from pathlib import Path

from evaluation.figures import better
from evaluation.report_charts import Series, bars, line_chart
from evaluation.report_curves import WHO, finite
from evaluation.report_page import DIRECTIONS, Page, Section, Table
from evaluation.report_pictures import Strips, picture_in
from evaluation.report_published import columns
from tessera import paths
from tessera.cli.compare.comparison import Comparison, number
from tessera.cli.compare.revisions import Run, read_file, read_run
from tessera.cli.compare.tables import MARK, figure_cells, shown_parameter

# The curves that are shown: of which training, which column of its validation.csv, and what it is.
CURVES = (
    ("train_vqvae", "bits_per_dim_distortion", "bits per dimension of the pixels, given the codes"),
    ("train_vqvae", "nmse", "squared error over the variance"),
    ("train_vqvae", "perplexity", "perplexity of the codes"),
    ("train_prior", "nats_per_token", "nats per token"),
    ("train_classifier", "accuracy", "share of images that are recognised"),
)
BITS = "evaluate:bits_per_dim."
PICTURES = {
    "results/sample/grid.png": (
        "Samples",
        "Samples at the parameters of `sampling`, one row per class where there are classes.",
    ),
    "results/evaluate/images/reconstructions.png": ("Reconstructions", "Test images, each above its reconstruction."),
    "results/evaluate/images/closest.png": (
        "Nearest training images",
        "The samples that are nearest to training images, each above its nearest one. The same image twice is a copy.",
    ),
}
IN_GIT = "Curves and figures are read from Git, pictures from DVC's cache or remote."


def comparison(names: list[str], foot: str) -> Page:
    """The page of runs by their names: revisions, experiments, or `workspace`.

    Raises:
        UserError: see `read_run`.
    """
    compared = Comparison([read_run(name) for name in names])
    made = (_summary, _pictures, _bits, _curves)
    heads = [_head(run) for run in compared.runs]
    lead = [f"{len(heads)} runs: {', '.join(heads)}. {IN_GIT}"]
    return Page("Runs side by side", lead, [section(compared) for section in made], foot)


def _head(run: Run) -> str:
    """A run's name and the beginning of its hash."""
    return run.label if run.commit.startswith(run.label) else f"{run.label} {run.commit[:7]}".strip()


def _summary(compared: Comparison) -> Section:
    """Figures, parameters, and what a reader must know."""
    section, heads = Section("figures", "Figures and parameters"), [_head(run) for run in compared.runs]
    section.notes = [f"{note}." for note in compared.notes]
    rows = [
        [name, better(name) or "", *(cell.replace(MARK, "★ ") for cell in figure_cells(compared, name))]
        for name in compared.figures
    ]
    section.add(
        "Headline figures",
        [Table("", ["figure", "better", *heads], rows) if rows else None],
        "The figures that are shown first, each with its stage. ★ marks the best value of a row, where the runs can be "
        "compared by it: rates only between priors of the same codes, distances only in the same network's features, "
        "figures of test images only on the same ones, and none where intervals overlap.",
        "The second column says which way is better.",
        "The row `evaluate:images.test` says on how many test images.",
    )
    if not rows:
        section.notes.append("No run has a results/STAGE/metrics.json: run `dvc repro`, and commit results.")
    if compared.parameters:
        values = [[path, *(shown_parameter(run, path) for run in compared.runs)] for path in compared.parameters]
        section.tables.append(
            Table("Parameters that differ (-: the run does not use it)", ["parameter", *heads], values)
        )
    else:
        section.notes.append("No parameter that the runs use differs.")
    return section


def _pictures(compared: Comparison) -> Section:
    section = Section("pictures", "Pictures")
    for file, (title, what) in PICTURES.items():
        strips, missing = [], []
        for run in compared.runs:
            data = _cached(run, Path(file))
            if data is None:
                missing.append(_head(run))
            else:
                strips.append((_head(run), picture_in(data, f"{title} of {_head(run)}", f"{run.label}: {file}")))
        shown = [Strips(strips, above=True) if strips else None]
        section.add(title, shown, what, "No number says it: look.", "As many as are shown.")
        if missing:
            section.notes.append(f"{title}: not in DVC's cache or remote, or never made, for {', '.join(missing)}.")
    return section


def _cached(run: Run, file: Path) -> bytes | None:
    """A file that DVC keeps, of a run, from its cache or its remote; None where neither has it, or DVC is not here."""
    if not run.commit:
        return file.read_bytes() if file.is_file() else None
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
    except ImportError:
        return None
    try:
        return DVCFileSystem(".", rev=run.commit).read_bytes(file.as_posix())
    except (DvcException, OSError):  # not there, or the remote cannot be reached
        return None


def _bits(compared: Comparison) -> Section:
    """The bits of each run under its own prior."""
    section, rows = Section("bits", "The account in bits"), {}
    for run in compared.runs:
        parts = {"distortion": run.figures.get(f"{BITS}distortion"), "rate": run.figures.get(f"{BITS}rate_prior")}
        if all(map(number, parts.values())):
            rows[_head(run)] = parts
        elif number(parts["rate"]):
            section.notes.append(f"{_head(run)} has no distortion in bits, and so no bar: it has no likelihood.")
    section.add(
        "Bits per dimension of a test image",
        [bars(rows, "bits per dimension")],
        "The pixels of an image given its codes (the distortion), and its codes and label under the run's prior (the "
        "rate).",
        _whether_bits_compare(compared),
        "Over the test images of each run.",
    )
    if not section.figures:
        section.notes.append("No run was evaluated.")
    return section


def _whether_bits_compare(compared: Comparison) -> str:
    if not compared.same_data:
        return "The runs have different data, so their bits do not compare."
    if not compared.same_test:
        return "The runs were measured on different test images, so their bits do not compare."
    return "Shorter is better."


def _curves(compared: Comparison) -> Section:
    section = Section("curves", "Validation curves")
    for stage, column, what in CURVES:
        series = []
        for run in compared.runs:
            file = paths.RESULTS / stage / "validation.csv"
            data = read_file(run, file)
            found = columns(data, f"{run.label}: {file}", "step") if data else {}
            if column in found:
                series.append(Series(_head(run), *finite(found["step"], found[column])))
        way = better(f"{stage}:validation.{column}") if compared.same_data else None
        of_codes = column == "nats_per_token" and not compared.same_codes
        way = None if of_codes else way
        chart = line_chart(series, "step", what)
        meaning = "One line a run. A line that rises while others fall overfits; one that ends early was stopped."
        if of_codes:
            meaning += " The runs have different codes, so the heights of their lines do not compare."
        elif not compared.same_data:
            meaning += " The runs have different data, so the heights of their lines do not compare."
        section.add(
            f"{WHO[stage]}: {column.replace('_', ' ')}", [chart], meaning, DIRECTIONS[way], "The validation split."
        )
    if not section.figures:
        section.notes.append("No run has curves in Git; commit results to keep them.")
    return section
