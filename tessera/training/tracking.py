"""The files of a training that DVC shows: curves as CSV and a summary as JSON."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from tessera.artifacts.files import json_text, write_text

Row = dict[str, float]


def line(metrics: dict[str, float]) -> str:
    """Figures as one line for a person: whole numbers as they are, others with four digits."""
    return "  ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in metrics.items())


def columns_of(rows: list[Row]) -> list[str]:
    """The names of all values, each where it first appears."""
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_text(rows: list[Row], columns: list[str] | None = None) -> str:
    """Rows as CSV text. A value is empty in rows that lack it.

    A number is written in the shortest form that reads back as the same number.

    Args:
        columns: the columns of a header that is already there; None: those of the rows, and a header.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows) if columns is None else columns, lineterminator="\n", restval="")
    if columns is None:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class GrowingCurve:
    """A CSV file that gets the rows of a curve as they come. A reader finds whole rows at any moment."""

    def __init__(self, path: Path) -> None:
        self.path, self.columns, self.count = path, [], 0

    def follow(self, rows: list[Row]) -> None:
        """Bring the file up to date.

        Args:
            rows: the curve so far: the rows of the call before, and new ones. At the first call the file is written
                anew, and a file that another training left is deleted if there is no row.
        """
        new = rows[self.count :]
        if not rows:
            self.path.unlink(missing_ok=True)
        elif self.count and self.path.exists() and set(columns_of(new)) <= set(self.columns):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(csv_text(new, self.columns))
        else:
            self.columns = columns_of(rows)
            write_text(self.path, csv_text(rows))
        self.count = len(rows)


def write_results(folder: Path, curves: dict[str, list[Row]], metrics: dict[str, Any]) -> None:
    """Write each curve as FOLDER/NAME.csv and the summary as FOLDER/metrics.json.

    Nothing that is written depends on the clock, so that the same run writes the same bytes.
    """
    for name, rows in curves.items():
        write_text(folder / f"{name}.csv", csv_text(rows))
    write_text(folder / "metrics.json", json_text(metrics))
