"""TwoStagePipeline on a tiny published run: what it gives."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from choices import few
from shipped import shipped

from sampling.generate import generate
from sampling.pipeline import TwoStagePipeline
from sampling.settings import Settings
from stage2_prior.priors.build import prior_class
from tessera import paths
from tessera.codes.store import open_codes
from tessera.errors import UserError
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared
from tessera.parameters.parts import options


def test_an_image_is_the_same_for_any_batch_size_and_start(pipeline):
    images = pipeline.generate(10, seed=3, guidance_scale=2.0)
    assert images.shape == (10, 1, 8, 8) and images.dtype == torch.float32 and images.abs().max() <= 1
    again = pipeline.generate(10, seed=3, guidance_scale=2.0, batch_size=3)
    part = pipeline.generate(4, seed=3, guidance_scale=2.0, start=5)
    assert torch.allclose(again, images, atol=1e-5) and torch.allclose(part, images[5:9], atol=1e-5)
    assert not torch.allclose(pipeline.generate(10, seed=4), pipeline.generate(10, seed=3), atol=1e-3)


def test_classes_come_in_turn_where_each_is_asked_for(pipeline):
    assert pipeline.check_labels("each", 5, start=2).tolist() == [2, 0, 1, 2, 0]
    named = pipeline.generate(3, labels=[0, 1, 2], seed=1)
    assert torch.equal(named, pipeline.generate(3, "each", seed=1))
    with pytest.raises(UserError, match="labels: no class is called 'all'"):
        pipeline.generate(3, "all")


def test_numbers_of_numpy_are_numbers(pipeline):
    plain = pipeline.generate(5, seed=3, batch_size=2, temperature=0.5, top_k=3, min_p=[0.125])
    settings = {"temperature": np.float32(0.5), "top_k": np.int64(3), "min_p": [np.float64(0.125)]}
    assert torch.equal(pipeline.generate(np.int64(5), seed=np.int64(3), batch_size=np.int32(2), **settings), plain)
    images = to_float(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert torch.equal(pipeline.reconstruct(images, np.int64(2)), pipeline.reconstruct(images, 2))
    with pytest.raises(UserError, match="top_k: expected a number, or None for no filter, got True"):
        pipeline.generate(3, top_k=np.bool_(True))


def test_an_unlabelled_prior_takes_no_labels(tiny_run):
    tiny_run(classes=0)
    pipeline = TwoStagePipeline.load()
    assert pipeline.generate(2, guidance_scale=3.0).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="without labels"):
        pipeline.generate(2, labels=[0, 0])


def test_the_null_label_can_be_sampled_and_guidance_changes_nothing_there(pipeline, pixels):
    null = [pipeline.num_classes] * 6
    free = pipeline.generate(6, null, seed=4)
    assert torch.allclose(pipeline.generate(6, null, seed=4, guidance_scale=3.0), free, atol=1e-5)
    empty = torch.zeros(8, 8, dtype=torch.bool)
    assert torch.allclose(pipeline.complete(to_float(pixels[:6]), empty, seed=4), free, atol=1e-5)
    assert torch.equal(pipeline.generate(6, seed=4), free)
    assert not torch.allclose(pipeline.generate(6, "each", seed=4), free, atol=1e-2)


def test_reconstruction_goes_through_the_codes(pipeline, pixels):
    images = to_float(pixels)
    codes = open_codes(paths.CODES)
    expected = pipeline.decode_tokens(codes["test"].rows(slice(None)))
    assert torch.allclose(pipeline.reconstruct(images, batch_size=7), expected, atol=1e-5)


def test_settings_that_are_left_out_are_those_of_params_yaml(pipeline):
    names = [field.name for field in fields(Settings)]
    values = {name: value for name, value in shipped().sampling.values().items() if name in names}
    assert asdict(Settings()) == values
    assert torch.equal(pipeline.generate(4, "each", **values), pipeline.generate(4, "each"))


def test_plain_settings_are_the_learned_distribution():
    plain = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "guidance_scale": 1.0}
    assert {name: asdict(Settings.plain())[name] for name in plain} == plain
    assert Settings(temperature=0.5, top_k=3, guidance_scale=2.0).unguided() == Settings.plain()


# Strides and codebook sizes of a run, by the label of a prior.
ONE_LEVEL, TWO_LEVELS = ([4], 8), ([4, 2], [5, 9])
PACKAGE = "stage2_prior.priors"
LEARNED = {name: TWO_LEVELS for name in options(PACKAGE) if prior_class(name).trained}
LEARNED |= {"pixelcnn": ONE_LEVEL, "rq_transformer": ONE_LEVEL, "sub-tokens": ([4], 9)}


@pytest.mark.parametrize("prior", few(LEARNED, "transformer", "masked", "chain", "pixelcnn"))
def test_every_kind_of_prior_samples_completes_and_measures(tiny_run, prior, monkeypatch):
    strides, sizes = LEARNED[prior]
    tiny_run((1, 8, 16), strides=strides, sizes=sizes, prior=prior)
    pipeline = TwoStagePipeline.load("models", "cpu")
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    images = pipeline.generate(6, seed=3, guidance_scale=2.0)
    assert torch.allclose(pipeline.generate(6, seed=3, guidance_scale=2.0, batch_size=4), images, atol=1e-4)
    known = torch.zeros(8, 16, dtype=torch.bool)
    known[:, :8] = True
    tokens = []
    monkeypatch.setattr("sampling.pipeline.generate", lambda *a: tokens.append((a[4], generate(*a))) or tokens[-1][1])
    completed = pipeline.complete(to_float(pixels), known, seed=1)
    assert torch.equal(completed[..., known], to_float(pixels)[..., known])
    given, chosen = (torch.cat(parts) for parts in zip(*tokens, strict=True))
    assert (given >= 0).any(1).all() and torch.equal(chosen[given >= 0], given[given >= 0])
    labels, unit = torch.arange(len(pixels)) % 3, 128 * math.log(2)
    found = pipeline.log_likelihood(pixels, labels)
    test_codes = open_codes(paths.CODES)["test"].rows(slice(None))
    nats, variance = pipeline.prior.estimate(test_codes, labels)
    torch.testing.assert_close(found["rate"], nats.double().sum(1) / unit)
    assert ("rate_standard_error" in found) == (prior in ("masked", "chain"))
    if "rate_standard_error" in found:
        assert (found["rate_standard_error"] > 0).all()
        torch.testing.assert_close(found["rate_standard_error"], variance.double().sqrt() / unit)
    else:
        weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        mixed = pipeline.log_likelihood(pixels, class_probabilities=weights)
        each = [pipeline.log_likelihood(pixels, [y] * len(pixels))["rate_by_level"] * unit for y in range(3)]
        p = weights[:, None, None] * (-torch.stack(each).cumsum(-1)).exp()  # of the levels up to each, and the class
        expected = -p.sum(0).log() / unit
        torch.testing.assert_close(mixed["rate_by_level"].cumsum(1), expected)
        torch.testing.assert_close(mixed["rate"], expected[:, -1])


def test_a_null_label_that_was_never_shown_is_not_used(tiny_run, raw_params):
    raw_params["sampling"]["guidance_scale"] = 1.0
    raw_params["stage2_prior"]["training"]["label_dropout"] = 0.0
    tiny_run(prior="pixelcnn", guidance_scale=1.0)
    pipeline = TwoStagePipeline.load("models", "cpu")
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    images, mask = to_float(pixels), torch.zeros(8, 8, dtype=torch.bool)
    for refused in (
        lambda: pipeline.generate(2, [0, 3]),
        lambda: pipeline.generate(2),
        lambda: pipeline.generate(2, "each", guidance_scale=2.0),
        lambda: pipeline.complete(images, mask),
        lambda: pipeline.log_likelihood(pixels),
    ):
        with pytest.raises(UserError, match="trained with label_dropout 0"):
            refused()
    classes = [0] * len(pixels)
    assert len(pipeline.generate(2, "each", guidance_scale=1.0)) == 2
    assert len(pipeline.complete(images, mask, classes, guidance_scale=1.0)) == len(images)
    pipeline.log_likelihood(pixels, classes)
    pipeline.log_likelihood(pixels, class_probabilities=[0.5, 0.25, 0.25])


def test_only_drawing_has_the_lower_precision(tiny_run):
    tiny_run(prior="pixelcnn")
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    pipeline, lower = (TwoStagePipeline.load("models", "cpu", precision=p) for p in ("fp32", "bf16"))
    images = lower.generate(8, seed=2)
    assert images.dtype == torch.float32 and torch.equal(lower.generate(8, seed=2), images)
    assert any(p.dtype == torch.bfloat16 for p in lower.drawing.parameters())
    assert all(p.dtype == torch.float32 for p in lower.prior.parameters())
    for name, value in pipeline.log_likelihood(pixels).items():
        assert torch.equal(lower.log_likelihood(pixels)[name], value)
    with pytest.raises(UserError, match="precision: expected fp32 or bf16, got 'fp16'"):
        TwoStagePipeline.load("models", "cpu", precision="fp16")


@pytest.mark.parametrize(
    "labels", [[0, 2][::-1], np.array([0, 2])[::-1], np.array([2, 0], np.uint16), np.array([2, 0], ">i4")]
)
def test_whole_numbers_of_any_kind_are_labels(pipeline, labels):
    assert pipeline.check_labels(labels, 2).tolist() == [2, 0]
