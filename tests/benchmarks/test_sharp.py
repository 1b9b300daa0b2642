"""benchmarks/sharp.py measures two decoders as the stages do, and measures no row twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from evaluation import evaluate, train_classifier
from sampling import sample
from stage1_vqvae import extract, refine, train
from stage2_prior import train as train_prior
from tessera import paths
from tessera.locks import acquire

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


def write_models(run: Path) -> None:
    """Folders of a finished run, each with one file."""
    for place in (paths.PREPARED, paths.CODES, paths.PRIOR):
        (run / place).mkdir(parents=True)
        (run / place / "file").write_text("a")


def test_a_folder_with_another_run_is_refused(sharp: ModuleType, in_tmp: Path) -> None:
    write_models(in_tmp / "run")
    (in_tmp / "run" / paths.PARAMS).write_text("")
    (in_tmp / "copy.part" / paths.CODES).mkdir(parents=True)  # of a command that was killed while it copied
    for _ in range(2):
        sharp.copied(in_tmp / "run", in_tmp / "copy")
    (in_tmp / "run" / paths.PRIOR / "file").write_text("b")
    with pytest.raises(SystemExit, match=r"copy/models/prior is not that of .*run; give another --folder"):
        sharp.copied(in_tmp / "run", in_tmp / "copy")
    with pytest.raises(SystemExit, match=r"run is the run itself, which stays as it is; give another --folder"):
        sharp.copied(in_tmp / "run", in_tmp / "run")


@pytest.fixture
def measured(
    sharp: ModuleType, in_tmp: Path, write_params: Callable, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """The number of samples and the seed of each measurement, which computes nothing, of a run in this folder."""
    found: list[tuple[int, int]] = []

    def rows_of(params: Any, named: dict[str, Any], *others: Any) -> list[dict[str, Any]]:
        found.append((params.sampling.images, params.sampling.seed))
        return [named | dict.fromkeys(sharp.FIGURES) | {"decoder": decoder} for decoder in sharp.DECODERS]

    write_params({"sampling.images": 12, "sampling.seed": 3, "sampling.grid_columns": 1})
    write_models(in_tmp)
    monkeypatch.setattr(sharp, "rows_of", rows_of)
    monkeypatch.setattr(sharp, "read_manifest", lambda *_: SimpleNamespace(identity="vqvae"))
    monkeypatch.setattr(sharp, "build_features", lambda _: SimpleNamespace(weights="weights"))
    return found


def test_a_command_does_not_inherit_the_values_of_an_earlier_one(
    sharp: ModuleType, measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = paths.PARAMS.read_text()
    called(sharp, monkeypatch, "--set", "sampling.images=5")
    called(sharp, monkeypatch, "--set", "sampling.seed=4")
    assert measured == [(5, 3), (12, 4)] and paths.PARAMS.read_text() == own


def test_a_row_by_other_weights_of_the_judge_does_not_count_as_measured(
    sharp: ModuleType, measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    called(sharp, monkeypatch)
    monkeypatch.setattr(sharp, "build_features", lambda _: SimpleNamespace(weights="others"))
    rows = called(sharp, monkeypatch)
    assert [row["judge_weights"] for row in rows] == ["weights", "weights", "others", "others"] and len(measured) == 2


def test_a_row_of_other_values_of_the_stage_does_not_count_as_measured(
    sharp: ModuleType, measured: list[tuple[int, int]], write_params: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values count, not what a command changes: the defaults may be others by then."""
    rows = called(sharp, monkeypatch)
    assert called(sharp, monkeypatch) == rows and len(measured) == 1
    write_params({"refine_decoder.training.learning_rate": 0.123})
    found = called(sharp, monkeypatch)
    assert len(measured) == 2 and [row["refine_decoder"]["training"]["learning_rate"] for row in found[2:]] == 2 * [
        0.123
    ]
    assert "file" not in json.dumps(found[0]["refine_decoder"])


@pytest.mark.parametrize("place", [paths.CODES, paths.PRIOR, paths.CLASSIFIER], ids=lambda place: place.name)
def test_a_row_of_other_codes_or_another_prior_or_classifier_does_not_count_as_measured(
    place: Path, sharp: ModuleType, measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    called(sharp, monkeypatch)
    shutil.rmtree("copy")
    place.mkdir(parents=True, exist_ok=True)
    (place / "file").write_text("trained again")
    assert len(called(sharp, monkeypatch)) == 4 and len(measured) == 2


@pytest.mark.parametrize(
    "change", [("sampling.temperature", 0.5), ("evaluation.images", 7)], ids=lambda change: change[0]
)
def test_a_row_of_other_values_of_sampling_or_evaluation_does_not_count_as_measured(
    change: tuple[str, float],
    sharp: ModuleType,
    measured: list[tuple[int, int]],
    write_params: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called(sharp, monkeypatch)
    write_params(dict([change]))
    rows = called(sharp, monkeypatch)
    assert len(rows) == 4 and called(sharp, monkeypatch) == rows and len(measured) == 2


def test_rows_from_before_they_had_all_values_do_not_count_as_measured(
    sharp: ModuleType, measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = called(sharp, monkeypatch)
    older = [{name: row[name] for name in row.keys() - {"sampling", "evaluation", "classifier"}} for row in rows]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older))
    assert called(sharp, monkeypatch) == older + rows and len(measured) == 2


def test_a_row_that_is_missing_is_added_and_a_picture_that_is_not_drawn_is_said(
    sharp: ModuleType,
    measured: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = called(sharp, monkeypatch)
    Path("rows.jsonl").write_text(json.dumps(second) + "\n")
    assert called(sharp, monkeypatch) == [second, first] and len(measured) == 2
    assert called(sharp, monkeypatch, "--picture", "both.png") == [second, first] and len(measured) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "both.png is not drawn" in said[0] and "give another file as --rows" in said[0]


@pytest.mark.parametrize(
    "other, before, after, went_on",
    [
        ([], [], ["finished-3-a"], False),
        (["step-2", "finished-3-a"], [], ["finished-3-a"], False),
        ([], ["step-2"], ["finished-3-a"], True),
        ([], ["finished-3-a"], [], True),
        ([], ["finished-3-b"], ["finished-3-a"], False),  # a result of other code
    ],
)
def test_time_is_told_unless_this_training_went_on(
    other: list[str],
    before: list[str],
    after: list[str],
    went_on: bool,
    sharp: ModuleType,
    in_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = in_tmp / paths.STATE / "refine_decoder"
    for training, names in (("other", other), ("this", before)):
        for name in names:
            (states / training / name).mkdir(parents=True)
        acquire(states / training / "lock", "").close()
        os.utime(states / training / "lock", (0, 0))

    def stage(*_: Any, **__: Any) -> SimpleNamespace:
        with acquire(states / "this" / "lock", ""):
            for name in after:
                (states / "this" / name).mkdir()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(sharp.subprocess, "run", stage)
    assert [value is None for value in sharp.refine().values()] == [went_on] * 2
