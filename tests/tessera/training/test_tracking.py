"""Curves and summaries as DVC reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from tessera.training.tracking import GrowingCurve, csv_text, write_results


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


def test_a_growing_curve_is_the_whole_curve_after_every_row(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / i} | ({"perplexity": float(i)} if i > 3 else {}) for i in range(1, 7)]
    curve = GrowingCurve(tmp_path / "train.csv")
    for count in (1, 2, 3, 4, 6):
        curve.follow(rows[:count])
        assert curve.path.read_text() == csv_text(rows[:count])


def test_a_growing_curve_goes_on_in_another_process_without_a_doubled_row(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(i)} for i in range(5)]
    GrowingCurve(tmp_path / "train.csv").follow(rows[:4])
    resumed = GrowingCurve(tmp_path / "train.csv")
    resumed.follow(rows[:2])  # the saved state is older than what was written
    assert resumed.path.read_text() == csv_text(rows[:2])
    resumed.follow(rows)
    assert resumed.path.read_text() == csv_text(rows)


def test_a_growing_curve_begins_without_the_rows_of_another_training(tmp_path: Path) -> None:
    GrowingCurve(tmp_path / "train.csv").follow([{"step": 1, "loss": 1.0}])
    GrowingCurve(tmp_path / "train.csv").follow([])
    assert not (tmp_path / "train.csv").exists()


def test_a_growing_curve_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(i)} for i in range(3)]
    curve = GrowingCurve(tmp_path / "train.csv")
    curve.follow(rows[:2])
    curve.path.unlink()
    curve.follow(rows)
    assert curve.path.read_text() == csv_text(rows)
