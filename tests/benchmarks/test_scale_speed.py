"""benchmarks/scale_speed.py draws what its rows say: every prior over the scales, and over the last scale alone."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_of_the_scales_and_of_the_last_one_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    import_module("sampling.generate")  # or the script of that name would hide the package
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    speed = import_module("scale_speed")
    small = {"layers": 1, "width": 16, "heads": 2}
    monkeypatch.setattr(speed, "PRIORS", {label: (name, own | small) for label, (name, own) in speed.PRIORS.items()})
    others = [label for label in speed.PRIORS if label != "next_scale"]
    options = {"sides": [1, 2, 4], "priors": others, "batch": 2, "repeats": 2, "precision": precision}
    # A GPU that is there, but does not draw, is not named.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "a GPU")
    rows = speed.measure(argparse.Namespace(**options, device="cpu", threads=1))
    expected = [("next_scale", "scales", 21)]
    for label in others:
        expected += [(label, "scales", 21), (label, "grid", 16)]
    assert [(row["prior"], row["layout"], row["tokens"]) for row in rows] == expected
    assert rows[0]["ratio"] == {"low": 1, "median": 1, "high": 1}
    assert all(row["ratio"]["median"] > 0 < row["seconds"]["low"] for row in rows)
    assert rows[0]["machine"] != "a GPU" == import_module("runs").processor()
    assert len(speed.table(rows).splitlines()) == len(rows) + 2
