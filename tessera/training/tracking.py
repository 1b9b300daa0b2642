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


def csv_text(rows: list[Row]) -> str:
    """Rows as CSV text. A column comes where it first appears, and is empty in rows that lack it.

    A number is written in the shortest form that reads back as the same number.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_results(folder: Path, curves: dict[str, list[Row]], metrics: dict[str, Any]) -> None:
    """Write each curve as FOLDER/NAME.csv and the summary as FOLDER/metrics.json.

    Nothing that is written depends on the clock, so that the same run writes the same bytes.
    """
    for name, rows in curves.items():
        write_text(folder / f"{name}.csv", csv_text(rows))
    write_text(folder / "metrics.json", json_text(metrics))
