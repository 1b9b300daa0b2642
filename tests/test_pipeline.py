"""The whole pipeline, every stage by its own entry point, on images that are not the default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from choices import few
from PIL import Image

from evaluation import evaluate
from evaluation import train_classifier as classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths
from tessera.codes.store import open_codes
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples
from tessera.parameters.parts import options
from tessera.training.checkpoint import StateFolder

Write = Callable[..., None]
BEFORE_THE_PRIOR = (prepare, train_vqvae, extract, classifier)
SINCE_THE_PRIOR = (train_prior, sample, evaluate)
SMALL = {
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.2,
    "classifier.conv.channels": 4,
    "classifier.training.steps": 6,
    "classifier.training.warmup_steps": 1,
    "classifier.training.validate_every": 3,
    "sampling.images": 6,
    "sampling.grid_columns": 2,
}


def run(*stages: ModuleType) -> None:
    for stage in stages:
        assert stage.main([]) == 0, stage.__name__


def measured() -> dict:
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def check_account(metrics: dict) -> None:
    """The bits add up, and every figure is a number."""
    bits = metrics["bits_per_dim"]
    for prior in ("uniform", "counts", "prior"):
        assert bits[f"total_{prior}"] == pytest.approx(bits["distortion"] + bits[f"rate_{prior}"])
    figures = [*bits.values(), *metrics["nats_per_token"].values(), *metrics["reconstruction"].values()]
    assert np.isfinite(figures).all()


def test_each_stage_names_what_takes_it_long(shades: Write, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("tessera.console.LONG", -1.0)  # nothing is too short to be named
    shades("transformer")
    run(train_prior, sample, evaluate)
    said = capsys.readouterr().err
    for name in ("start from the data", "validation", "nats of each token", "hashes of models/prior", "distances"):
        assert f"{name} ..." in said, name


def test_a_training_that_is_asked_to_end_says_in_its_files_at_which_step_and_which_steps_repeat_it(
    shades: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades("transformer")
    monkeypatch.setattr(StateFolder, "end_requested", lambda state: True)  # as `python -m tessera stop` leaves it
    run(train_prior)
    figures = json.loads((paths.RESULTS / "train_prior" / "metrics.json").read_text())["validation"]
    assert (figures["step"], figures["steps"]) == (5, 5)
    repeats = json.loads((paths.PRIOR / "manifest.json").read_text())["training"]
    assert repeats == {"steps": 5, "schedule_steps": 10}


def test_an_unlabelled_folder_of_rectangles_in_colour_goes_through_on_two_levels(
    in_tmp: Path, write_params: Write
) -> None:
    random = np.random.default_rng(0)
    (in_tmp / "holiday").mkdir()
    for i in range(30):
        pixels = random.integers(0, 255, (3, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((30, 18)).save(in_tmp / "holiday" / f"{i}.png")
    write_params(
        SMALL
        | {
            "data.source": "holiday",
            "data.watch": "holiday",
            "data.height": 8,
            "data.width": 16,
            "data.channels": 3,
            "stage1_vqvae.network.conv.strides": [2, 2],
            "stage1_vqvae.quantizer.vq.codebook_size": [4, 6],
            "stage1_vqvae.likelihood.name": "discretized_logistic",
        }
    )
    run(*BEFORE_THE_PRIOR, *SINCE_THE_PRIOR)
    metrics = measured()
    check_account(metrics)
    assert "classifier" not in metrics and metrics["unavailable"]["classifier"] == "the images have no labels"
    assert open_prepared(paths.PREPARED).stats.images == {"train": 18, "validation": 6, "test": 6}
    grids = [(level.height, level.width, level.codebook_size) for level in open_codes(paths.CODES).layout.levels]
    assert grids == [(2, 4, 4), (4, 8, 6)]
    assert open_samples(paths.SAMPLES)["default"].images.shape == (6, 3, 8, 16)
    with Image.open(paths.SAMPLES / "grid.png") as grid:
        assert grid.size[0] > 16


@pytest.fixture(scope="module")
def extracted_runs() -> list[Path]:
    """At most one: a copy of a run of grey images up to its codes and its classifier."""
    return []


@pytest.fixture
def shades(
    in_tmp: Path, write_params: Write, extracted_runs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Write:
    """`shades("pixelcnn")`: params.yaml with this prior, and all that is made before the prior, which is made once."""

    def make(prior: str) -> None:
        changes = SMALL | {"data.source": "shades", "data.watch": "shades", "stage2_prior.name": prior}
        if not extracted_runs:
            random = np.random.default_rng(0)
            for name, level in (("dark", 40), ("light", 200)):
                (in_tmp / "shades" / name).mkdir(parents=True)
                for i in range(20):
                    pixels = np.full((12, 12), level + random.integers(-30, 30), np.uint8)
                    Image.fromarray(pixels).save(in_tmp / "shades" / name / f"{i}.png")
            write_params(changes)
            run(*BEFORE_THE_PRIOR)
            extracted_runs.append(shutil.copytree(in_tmp, tmp_path_factory.mktemp("run") / "extracted"))
        else:
            shutil.copytree(extracted_runs[0], in_tmp, dirs_exist_ok=True)
        write_params(changes)

    return make


@pytest.mark.parametrize("prior", few(options("stage2_prior.priors"), "uniform", "transformer", "masked", "chain"))
def test_grey_images_with_classes_go_through_with_every_prior(shades: Write, prior: str) -> None:
    shades(prior)
    run(*SINCE_THE_PRIOR)
    metrics = measured()
    check_account(metrics)
    of_each_class = metrics["classifier"].pop("per_class")
    assert all(0 <= value <= 1 for value in metrics["classifier"].values())
    assert all(0 <= row["sample_agreement"] <= 1 for row in of_each_class) and of_each_class
    samples = open_samples(paths.SAMPLES)["unguided"]
    assert samples.images.shape == (6, 1, 8, 8)
    assert np.asarray(samples.labels).tolist() == [0, 1, 0, 1, 0, 1]
