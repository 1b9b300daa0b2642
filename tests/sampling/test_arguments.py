"""What Python code passes to a pipeline: numbers of numpy, odd values in one line, devices, its repr, Pillow images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sampling import checks
from sampling.pipeline import TwoStagePipeline
from stage2_prior.priors.build import build_prior, load_prior
from tessera import paths
from tessera.errors import UserError
from tessera.images.pixels import to_float, to_uint8
from tessera.project import ROOT


def refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_means_nothing_is_one_line(pipeline):
    p = pipeline
    for call, message in (
        (lambda: p.generate(2, labels=["cat", "dog"]), "labels: no class is called 'cat'"),
        (lambda: p.generate(2, labels=[None, 1]), "labels: expected 2 whole numbers or names"),
        (lambda: p.generate(2, labels={0, 1}), "labels: expected 2 whole numbers or names"),
        (lambda: p.generate(2, guidance_scale=1e300), "guidance_scale: expected a number from 0 to 1000, got 1e"),
        (lambda: p.generate(2, guidance_scale=np.float64(1e300)), "guidance_scale: expected a number from 0 to 1000"),
        (lambda: p.generate(2**70), "n: expected at most 1000000000 images"),
        (lambda: p.generate(2.0), "n: expected a whole number"),
        (lambda: p.generate(0), "n: expected a whole number of at least 1"),
        (lambda: p.batches(np.float64(4)), "n: expected a whole number"),
        (lambda: p.to_pil(torch.zeros(8, 8)), "images: expected"),
        (lambda: p.to_pil(torch.full((1, 1, 8, 8), 9.0)), "images: expected values in"),
    ):
        refused(call, message)


def test_what_are_no_probabilities_is_one_line(pipeline, pixels):
    for values in ("uniform", {"a": 1.0}, [None] * 3, [[0.5], [0.5, 0.5]], ["a", "b", "c"], 0.5, [1.0]):
        refused(
            lambda values=values: pipeline.log_likelihood(pixels, class_probabilities=values),
            "class_probabilities: expected 3 numbers .* got ",
        )


def test_huge_places_and_batches_are_taken(pipeline, pixels):
    images = pipeline.generate(3, "each", seed=2**70, batch_size=2**70, start=2**70)
    assert torch.allclose(pipeline.generate(1, "each", seed=2**70, start=2**70 + 2), images[2:], atol=1e-5)
    floats = to_float(pixels)
    assert torch.equal(pipeline.reconstruct(floats, 2**70), pipeline.reconstruct(floats, 64))
    assert torch.equal(
        pipeline.log_likelihood(pixels, batch_size=2**70)["total"], pipeline.log_likelihood(pixels)["total"]
    )


def test_small_integers_of_numpy_do_not_overflow(pipeline):
    images = pipeline.generate(np.uint8(20), "each", seed=np.int8(3), start=np.uint8(250), batch_size=np.uint8(7))
    assert torch.equal(images, pipeline.generate(20, "each", seed=3, start=250, batch_size=7))
    by_array = pipeline.generate(2, top_k=np.array([3]), temperature=np.array(0.5))
    assert torch.equal(by_array, pipeline.generate(2, top_k=[3], temperature=0.5))


def test_more_images_than_memory_holds_are_refused_and_come_in_batches(pipeline, monkeypatch):
    monkeypatch.setattr(checks, "free_bytes", lambda device: 4 * 2 * 64 * 5)
    assert len(pipeline.generate(5)) == 5
    refused(lambda: pipeline.generate(6), "n: 6 images take .* take them batch by batch from `batches`")
    assert sum(len(batch) for batch in pipeline.batches(6, batch_size=4)) == 6


@pytest.mark.parametrize("device", ["cpux", "cpu:x", "cuda:99", 3.5, "meta"])
def test_a_device_that_is_not_here_is_one_line_before_anything_is_read(device):
    refused(lambda: TwoStagePipeline.load("no such folder", device), "device: expected cpu")


def test_fewer_names_than_images_are_taken_in_turn(tiny_run):
    tiny_run(names=("ankle boot", "猫", "7"))
    pipeline = TwoStagePipeline.load("models", "cpu")
    images = pipeline.generate(4, ["7", "猫"], seed=1)
    assert torch.equal(images, pipeline.generate(4, [2, 1, 2, 1], seed=1))
    assert torch.equal(pipeline.generate(4, "7", seed=1), pipeline.generate(4, [2] * 4, seed=1))
    known = torch.zeros(8, 8, dtype=torch.bool)
    assert torch.equal(pipeline.complete(images, known, "7"), pipeline.complete(images, known, [2] * 4))
    for call in (pipeline.log_likelihood, lambda x, y: pipeline.complete(to_float(x), known, y)):
        refused(lambda call=call: call(to_uint8(images), ["7", "猫"]), "labels: expected 4 whole numbers or names")
    text = repr(pipeline)
    for part in ("8x8 grey", "3: 0 = ankle boot, 1 = 猫, 2 = 7", "2x2, each one of 8", "counts", "of models, on cpu"):
        assert part in text


def test_a_class_that_training_never_showed_is_refused_where_it_is_sampled_and_measured_where_it_is_given(tiny_run):
    tiny_run(names=("a", "b", "c"), untrained=1)
    pipeline = TwoStagePipeline.load("models", "cpu")
    prior, _ = load_prior(paths.PRIOR)
    assert prior.class_names == ("a", "b", "c") and prior.class_images == (16, 0, 32)
    images = pipeline.generate(4, "each", seed=1)
    assert torch.equal(images, pipeline.generate(4, ["a", "c"], seed=1))
    for call in (
        lambda: pipeline.generate(1, "b"),
        lambda: pipeline.generate(2, [0, 1]),
        lambda: pipeline.complete(images, torch.ones(8, 8, dtype=torch.bool), [0, 1, 2, 0]),
    ):
        refused(call, "labels: no training image shows class 1 \\('b'\\)")
    assert pipeline.log_likelihood(to_uint8(images), ["a", "b", "c", "a"])["total"].isfinite().all()
    assert "1 without training images" in repr(pipeline)


def test_a_prior_that_does_not_say_its_classes_takes_numbers(pipeline):
    config = json.loads((paths.PRIOR / "config.json").read_text())
    assert config["class_names"] == ["class 0", "class 1", "class 2"] and config["class_images"] == [16, 16, 16]
    older = {name: value for name, value in config.items() if name not in ("class_names", "class_images")}
    prior = build_prior(older)
    prior.load_state_dict(pipeline.prior.state_dict())
    old = TwoStagePipeline(pipeline.vqvae, prior, "cpu")
    assert torch.equal(old.generate(3, "each"), pipeline.generate(3, "each"))
    refused(lambda: old.generate(1, "class 0"), "does not say its classes' names")
    with pytest.raises(ValueError, match="2 names or numbers of images for 3 classes"):
        build_prior(config | {"class_names": ["a", "b"]})


def test_the_repr_says_what_an_unlabelled_pipeline_of_a_chain_is(tiny_run):
    tiny_run((3, 8, 12), classes=0, strides=[2, 2], sizes=[5, 9], prior="chain")
    text = repr(TwoStagePipeline.load("models", "cpu"))
    for part in ("8x12 RGB", "classes  none", "2x3, each one of 5, 4x6, each one of 9", "chain of pixelcnn, masked"):
        assert part in text
    size = sum(p.numel() for p in load_prior(paths.PRIOR)[0].parameters())
    assert f"{size:,} parameters" in text and len(text.splitlines()) == 6


def test_the_repr_says_the_steps_that_manifests_tell(pipeline):
    pipeline.manifests["vqvae"] = replace(pipeline.manifests["vqvae"], training={"steps": 1200})
    pipeline.manifests["prior"] = replace(pipeline.manifests["prior"], training={})
    assert [line.split()[0] for line in repr(pipeline).splitlines() if "1,200 steps" in line] == ["vqvae"]
    assert "steps" not in repr(TwoStagePipeline(pipeline.vqvae, pipeline.prior, "cpu"))


def test_pillow_images_are_the_pixels_of_float_and_uint8_images(pipeline):
    images = pipeline.generate(3, seed=1)
    for version in (images, to_uint8(images)):
        found = torch.stack([torch.from_numpy(np.array(image)) for image in pipeline.to_pil(version)])[:, None]
        assert torch.equal(found, to_uint8(images))


def test_code_of_another_checkout_is_said_in_one_line(pipeline, capsys, monkeypatch):
    other = Path("other").resolve()
    (other / "tessera").mkdir(parents=True)
    (other / "tessera" / "project.py").touch()
    (other / "notebooks").mkdir()
    Path("models").rename(other / "models")
    TwoStagePipeline.load(other / "models", "cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(other / "notebooks")
    TwoStagePipeline.load("../models", "cpu")
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and str(ROOT) in error and str(other) in error and error.count("\n") == 1
    monkeypatch.chdir(ROOT)
    checks.warn_of_other_checkout(Path.cwd())
    assert capsys.readouterr().err == ""


def test_a_guidance_at_the_limit_gives_images(pipeline):
    assert pipeline.generate(2, "each", guidance_scale=1000).isfinite().all()
