"""The benchmark of refined codes tells the seconds of an extraction that began anew, and of no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tessera import paths

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("begun, told", [([], True), (["other"], True), (["this"], False), (["other", "this"], False)])
def test_seconds_are_told_unless_this_extraction_went_on(
    begun: list[str], told: bool, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = __import__("refined_codes")
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
