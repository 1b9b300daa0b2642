"""A comparison as tables in the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.figures import better
from tessera.cli.compare.comparison import MISSING, Comparison, number
from tessera.cli.compare.revisions import Run
from tessera.errors import printable

WIDTH = 120  # the most columns of the terminal that are used
NARROWEST = 60
BESIDE_NAMES = 8  # a name takes at most half of the width less this many columns; longer ones are broken
VALUE = 24  # columns of a value in one line; longer ones are broken, never cut
PADDING = 2  # right of a column
GAP = PADDING + 1  # between two columns, with the box's own column
MARK = "* "
HASH = 7  # digits of a commit that are shown


def shown_parameter(run: Run, path: str) -> str:
    """A parameter's value, exactly; "-" for one that the run does not use."""
    return _shown(run.parameters.values.get(path, MISSING))


def _shown(value: Any) -> str:
    if value is MISSING:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rounded(value: float) -> str:
    """A figure to four significant digits; whole numbers are exact."""
    return str(value) if isinstance(value, int) else format(value, "#.4g").rstrip(".")


def figure_cells(comparison: Comparison, name: str) -> list[str]:
    """A row of figures, the best ones marked."""
    best, cells = comparison.best(name), []
    for place, run in enumerate(comparison.runs):
        value = run.figures.get(name)
        text = comparison.why_missing(name, run) if value is None else str(value)
        if number(value):
            text = (MARK if place in best else "") + rounded(value)
        cells.append(text)
    return cells


def _change(comparison: Comparison, name: str) -> str:
    """The second value of two less the first."""
    values = [run.figures.get(name) for run in comparison.runs]
    if not all(number(value) for value in values) or values[0] == values[1]:
        return ""
    return f"{values[1] - values[0]:+.4g}"


def _heads(comparison: Comparison) -> list[str]:
    """The head of each run's column: its name above its short hash, or the hash alone."""
    heads = []
    for run in comparison.runs:
        by_hash = run.commit.startswith(run.label)
        heads.append("\n".join(filter(None, ["" if by_hash else run.label, run.commit[:HASH]])))
    return heads


def _text(value: str, style: str = "") -> Text:
    """Text of one line or more; names and values of other people's runs may hold anything."""
    return Text("\n".join(map(printable, value.split("\n"))), style)


def _blocks(widths: list[int], room: int) -> list[range]:
    """Splits columns of these widths into blocks, none wider than `room` unless it is a single column."""
    found, start, filled = [], 0, 0
    for place, width in enumerate(widths):
        if place > start and filled + width > room:
            found.append(range(start, place))
            start, filled = place, 0
        filled += width
    return [*found, range(start, len(widths))]


def _print_tables(console: Console, title: str, left: list[list[str]], heads: list[str], columns: list[list[str]]):
    """Print rows as one table, or as several below one another if the columns of all runs are too wide together.

    Args:
        left: the columns that every table has, the name first; each begins with its head.
        heads, columns: of each run, and of what else stands beside them.
    """
    console.print(title, style="bold")
    widths = [
        min(VALUE, max(cell_len(line) for text in (head, *column) for line in text.split("\n"))) + GAP
        for head, column in zip(heads, columns, strict=True)
    ]
    longest = console.width // 2 - BESIDE_NAMES
    fixed = sum(min(longest, max(map(cell_len, column))) + GAP for column in left)
    for block in _blocks(widths, console.width - fixed):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, PADDING, 0, 0), show_edge=False)
        for place, column in enumerate(left):
            table.add_column(_text(column[0]), overflow="fold", max_width=longest, no_wrap=place > 0)
        for run in block:
            table.add_column(_text(heads[run]), overflow="fold", max_width=VALUE, justify="right")
        for row in range(len(columns[0])):
            cells = [column[row + 1] for column in left] + [columns[run][row] for run in block]
            table.add_row(*(_text(cell, "bold" if cell.startswith(MARK) else "") for cell in cells))
        console.print(table)
        console.print()


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the parameters that differ, the figures, and the notes, in at most 120 columns."""
    if console is None:
        columns = min(WIDTH, max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns))
        console = Console(width=columns, highlight=False, markup=False, emoji=False)
    heads, runs = _heads(comparison), comparison.runs
    if comparison.parameters:
        values = [[shown_parameter(run, path) for path in comparison.parameters] for run in runs]
        title = "parameters that differ (-: the run does not use it)"
        _print_tables(console, title, [["parameter", *comparison.parameters]], heads, values)
    else:
        console.print("no parameter that the runs use differs\n")
    if comparison.figures:
        left = [["figure", *comparison.figures], ["better", *(better(name) or "" for name in comparison.figures)]]
        rows = [figure_cells(comparison, name) for name in comparison.figures]
        columns = [list(column) for column in zip(*rows, strict=True)]
        if len(runs) == 2:
            heads, columns = [*heads, "change"], [*columns, [_change(comparison, name) for name in comparison.figures]]
        _print_tables(console, "figures (*: the best)", left, heads, columns)
    else:
        console.print("no figures: no run has a results/STAGE/metrics.json; run `dvc repro`, and commit results\n")
    for note in comparison.notes:
        console.print(f"note: {printable(note)}")


def csv_rows(comparison: Comparison) -> str:
    """The rows of both tables as CSV text, values exact, with the columns kind, name, better, and one for each run.

    An empty cell is a value that the run does not have.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", "better", *(run.label for run in comparison.runs)])
    for path in comparison.parameters:
        values = [run.parameters.values.get(path, MISSING) for run in comparison.runs]
        writer.writerow(["parameter", path, "", *("" if value is MISSING else _shown(value) for value in values)])
    for name in comparison.figures:
        values = [run.figures.get(name, "") for run in comparison.runs]
        writer.writerow(["figure", name, better(name) or "", *values])
    return text.getvalue()
