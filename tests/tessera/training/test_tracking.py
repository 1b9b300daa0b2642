"""Curves and summaries as DVC reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from tessera.training.tracking import csv_text, write_results


def test_columns_stand_in_order_of_first_appearance_and_gaps_stay_empty() -> None:
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "perplexity": 3.0}, {"step": 3, "perplexity": 4.0}]
    assert csv_text(rows) == "step,loss,perplexity\n1,0.5,\n2,0.25,3.0\n3,,4.0\n"


def test_numbers_read_back_equal() -> None:
    values = [0.1 + 0.2, 1e-30, 3.0, 1 / 3]
    rows = list(csv.DictReader(io.StringIO(csv_text([{"step": i, "x": v} for i, v in enumerate(values)]))))
    assert [float(row["x"]) for row in rows] == values


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_results(tmp_path / name, {"train": [{"step": 1, "loss": 2.0}]}, {"validation": {"nmse": 0.5}})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["metrics.json", "train.csv"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == {"validation": {"nmse": 0.5}}
