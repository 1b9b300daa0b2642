"""The refined decoder and a VQGAN in the stages after stage 1: who draws the images, and where the bits come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import evaluate
from evaluation import train_classifier as classifier
from sampling import sample
from sampling.pipeline import TwoStagePipeline
from stage1_vqvae import extract, refine, train
from stage2_prior import train as train_prior
from tessera import paths
from tessera.errors import UserError
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared
from tessera.parameters import load

pytestmark = pytest.mark.slow
SMALL = {
    "stage2_prior.name": "counts",
    "classifier.name": "none",
    "evaluation.features.name": "none",
    "sampling.images": 6,
    "sampling.grid_columns": 2,
    "sampling.guidance_scale": 1.0,
    "refine_decoder.name": "objective",
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.5}},
}


@pytest.fixture(autouse=True)
def on_the_cpu(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def run(*stages: Any) -> None:
    for stage in stages:
        assert stage.main([]) == 0, stage.__name__


def measured() -> dict[str, Any]:
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def test_the_refined_decoder_draws_and_the_bits_stay(write_params: Callable, write_prepared: Callable) -> None:
    write_prepared()
    write_params(SMALL)
    run(train, refine, extract, train_prior, classifier, sample, evaluate)
    plain, samples = measured(), (paths.SAMPLES / "grid.png").read_bytes()
    write_params({"sampling.decoder": "refined"})
    with pytest.raises(UserError, match="results/sample: made from another decoder"):
        evaluate.run(load(paths.PARAMS), None)
    run(sample, evaluate)
    refined = measured()
    assert refined["bits_per_dim"] == plain["bits_per_dim"] and refined["codebook"] == plain["codebook"]
    assert refined["reconstruction"] != plain["reconstruction"]
    assert (paths.SAMPLES / "grid.png").read_bytes() != samples
    write_params({"sampling.decoder": "likelihood"})
    with pytest.raises(UserError, match="results/sample: drawn by the refined decoder; make it anew"):
        evaluate.run(load(paths.PARAMS), None)

    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    one, other = (TwoStagePipeline.load(device="cpu", decoder=name) for name in ("likelihood", "refined"))
    assert torch.equal(one.log_likelihood(pixels)["total"], other.log_likelihood(pixels)["total"])
    images = to_float(pixels)
    assert not torch.equal(one.reconstruct(images), other.reconstruct(images))
    assert not torch.equal(one.generate(3, seed=1), other.generate(3, seed=1))
    assert "refined" in repr(other) and "refined" not in repr(one)


def test_a_vqgan_from_the_start_has_rates_and_no_distortion(write_params: Callable, write_prepared: Callable) -> None:
    write_prepared()
    write_params(SMALL | {"refine_decoder.name": "none", "stage1_vqvae.objective.adversarial.weight": 0.5})
    run(train, refine, extract, train_prior, classifier, sample, evaluate)
    found = measured()
    assert {"rate_uniform", "rate_counts", "rate_prior"} <= found["bits_per_dim"].keys()
    for name in ("distortion", "total_uniform", "total_counts", "total_prior"):
        assert name not in found["bits_per_dim"]
        assert "no likelihood was fitted" in found["unavailable"][f"bits_per_dim.{name}"]
    assert found["reconstruction"].keys() >= {"psnr", "nmse"}
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    with pytest.raises(UserError, match="bits per dimension are unavailable"):
        TwoStagePipeline.load(device="cpu").log_likelihood(pixels)
