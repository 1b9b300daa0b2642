"""benchmarks/sharp.py measures two decoders as the stages do, and measures no row twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evaluation import evaluate, train_classifier
from sampling import sample
from stage1_vqvae import extract, refine, train
from stage2_prior import train as train_prior
from tessera import paths

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "stage2_prior.name": "counts",
    "evaluation.features.name": "classifier",
    "classifier.training.steps": 20,
    "classifier.training.warmup_steps": 2,
    "classifier.training.validate_every": 10,
    "sampling.images": 12,
    "sampling.grid_columns": 2,
    "sampling.guidance_scale": 1.0,
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.5}},
}


@pytest.fixture
def sharp(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on the CPU, with its own folder first."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__("sharp")


def run(*stages: Any) -> None:
    for stage in stages:
        assert stage.main([]) == 0, stage.__name__


def called(sharp: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Any]]:
    """The rows after a command that measures the run of this folder in the folder `copy`."""
    here = Path.cwd()
    monkeypatch.setattr(sys, "argv", ["sharp.py", ".", "--folder", "copy", "--rows", "rows.jsonl", *words])
    sharp.main()
    monkeypatch.chdir(here)
    return [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_row_has_the_figures_of_the_stages_and_is_measured_once(
    sharp: ModuleType, write_params: Callable, write_prepared: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prepared()
    write_params(SMALL)
    run(train, refine, extract, train_prior, train_classifier)
    monkeypatch.setattr(sharp, "refine", lambda: {"seconds": refine.main([]) + 1.0, "cpu_seconds": 1.0})
    rows = called(sharp, monkeypatch, "--picture", "both.png")
    assert [row["decoder"] for row in rows] == ["likelihood", "refined"] and Path("both.png").exists()
    monkeypatch.setattr(sharp, "refine", lambda: pytest.fail("it trains again"))
    assert called(sharp, monkeypatch) == rows

    write_params({"refine_decoder.name": "objective"})
    run(refine)
    for row in rows:
        write_params({"sampling.decoder": row["decoder"]})
        run(sample, evaluate)
        found = json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())
        both = found["distribution"]
        assert row["rfd"] == pytest.approx(both["reconstructions"]["frechet_distance"], abs=1e-6)
        assert row["rkid"] == pytest.approx(both["reconstructions"]["kid"], abs=1e-6)
        assert row["gfd"] == pytest.approx(both["default"]["frechet_distance"], abs=1e-6)
        assert row["gkid"] == pytest.approx(both["default"]["kid"], abs=1e-6)
        assert row["floor_kid"] == pytest.approx(both["floor"]["kid"], abs=1e-6)
        assert row["psnr"] == pytest.approx(found["reconstruction"]["psnr"], abs=0.05)  # of images of 8 bits
        assert row["agreement"] == found["classifier"]["sample_agreement"]
        assert row["codes_before"] == row["codes_after"] == sharp.contents(paths.CODES)


def test_a_folder_with_another_run_is_refused(sharp: ModuleType, in_tmp: Path) -> None:
    for place in (paths.PREPARED, paths.CODES, paths.PRIOR):
        (in_tmp / "run" / place).mkdir(parents=True)
        (in_tmp / "run" / place / "file").write_text("a")
    (in_tmp / "run" / paths.PARAMS).write_text("")
    for _ in range(2):
        sharp.copied(in_tmp / "run", in_tmp / "copy")
    (in_tmp / "run" / paths.PRIOR / "file").write_text("b")
    with pytest.raises(SystemExit, match=r"copy/models/prior is not that of .*run; give another --folder"):
        sharp.copied(in_tmp / "run", in_tmp / "copy")
