"""The benchmark of refined codes compares rows of one VQ-VAE, and tells the seconds of whole extractions only."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tessera import paths
from tessera.artifacts.publishing import publishing

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import_module("sampling.generate")  # or benchmarks/sampling.py would hide the package
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("refined_codes")


@pytest.mark.parametrize("begun, told", [([], True), (["other"], True), (["this"], False), (["other", "this"], False)])
def test_seconds_are_told_unless_this_extraction_went_on(
    begun: list[str], told: bool, benchmark: ModuleType, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = in_tmp / paths.STATE / "extract_codes"
    for name in begun:
        part = states / name / "train" / "pass-000" / "codes-00000.npy.json"
        part.parent.mkdir(parents=True)
        part.touch()

    def stage(module: str) -> float:
        assert module == "stage1_vqvae.extract"
        shutil.rmtree(states / "this", ignore_errors=True)
        return 2.0

    monkeypatch.setattr(benchmark, "stage", stage)
    assert benchmark.extract() == (2.0 if told else None)


def test_a_row_counts_only_if_the_folder_has_its_vqvae(
    benchmark: ModuleType, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder is trained, deleted, and trained again: the rows of its first VQ-VAE are measured again."""
    trainings, measured = iter("ab"), []
    Path("images").mkdir()

    def stage(module: str) -> float:
        if module == "stage1_vqvae.train":
            with publishing(paths.VQVAE, "vqvae", {}) as folder:
                (folder / "model.safetensors").write_text(next(trainings))
        return 1.0

    def measure(named: dict[str, Any], refine: int) -> dict[str, Any]:
        measured.append(refine)
        figures = {"bits_per_dim": dict.fromkeys(benchmark.COLUMNS, 1.0), "extracted_validation": {}}
        return named | {"refine": refine, "code": "code", "seconds": 1.0} | figures

    def called(refine: int) -> None:
        words = ["cifar10", "images", "--folder", "folder", "--rows", "rows.jsonl", "--refine", str(refine)]
        monkeypatch.setattr(sys, "argv", ["refined_codes.py", *words])
        benchmark.main()
        monkeypatch.chdir(in_tmp)

    monkeypatch.setattr(benchmark, "stage", stage)
    monkeypatch.setattr(benchmark, "measure", measure)
    for refine in (0, 50, 0):
        called(refine)
    assert measured == [0, 50]
    shutil.rmtree("folder")
    called(50)
    called(0)
    assert measured == [0, 50, 50, 0]
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len({row["values"] for row in rows}) == 1
    assert rows[0]["vqvae"] == rows[1]["vqvae"] != rows[2]["vqvae"] == rows[3]["vqvae"]
    assert len(capsys.readouterr().out.split("| steps")[-1].splitlines()) == 5  # two lines of title, two rows, the code
