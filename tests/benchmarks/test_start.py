"""benchmarks/start.py takes no image twice, and measures a data set again on other cores."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
ROW = {"planned": 1, "taken": 1.0, "rate_prior": 1.0, "rate_counts": 2.0, "nmse": 0.1, "accuracy": None}
ROW |= {"majority": None, "agreement": None, "grid": "grid.png"}


@pytest.fixture
def start(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import_module("sampling.generate")  # or benchmarks/sampling.py would hide the package
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("start")


def test_some_images_are_different_ones_and_more_than_there_are_are_refused(start: ModuleType, in_tmp: Path) -> None:
    (in_tmp / "images").mkdir()
    for number in range(12):
        Image.fromarray(np.full((4, 4), 20 * number, np.uint8)).save(in_tmp / "images" / f"{number}.png")
    start.write_some(str(in_tmp / "images"), in_tmp / "some" / "images", 8)
    assert len({path.read_bytes() for path in (in_tmp / "some" / "images").iterdir()}) == 8
    with pytest.raises(SystemExit, match=r"--images 13: .* has 12 training images; give no more, or leave it out"):
        start.write_some(str(in_tmp / "images"), in_tmp / "others" / "images", 13)
    assert not list(in_tmp.glob("others/images/*"))


def test_a_row_of_other_cores_does_not_count_as_measured(
    start: ModuleType, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[tuple[int, str]] = []

    def measure(dataset: str, images: int | None, minutes: float, scratch: Path) -> dict[str, Any]:
        cores, processor = here[-1]
        what = {"dataset": dataset, "images": images, "minutes": minutes}
        return ROW | what | {"cores": cores, "processor": processor}

    monkeypatch.setattr(start, "measure", measure)
    monkeypatch.setattr(start, "available_cores", lambda: here[-1][0])
    monkeypatch.setattr(start, "processor", lambda: here[-1][1])
    monkeypatch.setattr(sys, "argv", ["start.py", "digits", "--rows", "rows.jsonl"])
    found = []
    for cores in ((1, "A"), (2, "A"), (2, "A"), (1, "B"), (1, "A")):
        here.append(cores)
        start.main()
        rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
        found.append([f"{row['cores']} {row['processor']}" for row in rows])
    assert found == [["1 A"], ["1 A", "2 A"], ["1 A", "2 A"], ["1 A", "2 A", "1 B"], ["1 A", "2 A", "1 B"]]
