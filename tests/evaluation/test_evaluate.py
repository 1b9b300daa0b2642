"""Sampling, the classifier and the evaluation, as a user runs them, on a tiny run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import evaluate
from evaluation import train_classifier as classifier
from evaluation.choices import fixed_choice
from sampling import sample
from stage1_vqvae.model import load_vqvae
from stage2_prior.priors.build import load_prior, prior_config
from tessera import paths
from tessera.artifacts.manifests import manifest_text, read_manifest
from tessera.cli.preset import leaves
from tessera.codes.store import open_codes
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.examples import spread_over_classes
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples

KEYS = {
    "bits_per_dim": {"distortion", "rate_uniform", "rate_counts", "rate_prior", "total_uniform", "total_prior"},
    "nats_per_token": {"uniform", "counts", "prior"},
    "reconstruction": {"psnr", "ssim", "nmse"},
    "codebook": {"usage", "perplexity", "tokens"},
    "distribution": {"features", "reconstructions", "default", "unguided", "floor"},
    "classifier": {
        "real_accuracy",
        "majority_accuracy",
        "reconstruction_agreement",
        "sample_agreement",
        "unguided_agreement",
    },
}


def run_all() -> dict:
    for entry in (classifier, sample, evaluate):
        assert entry.main([]) == 0
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def check_figures(metrics: dict) -> None:
    """Every key of the design, and the likelihood figures against the definition, image by image."""
    for section, names in KEYS.items():
        assert section in metrics.get("unavailable", {}) or names <= set(metrics[section])
    headlines = json.loads((paths.RESULTS / "evaluate" / "headlines.json").read_text())
    assert len(leaves(headlines)) <= 12
    assert leaves(metrics).items() >= leaves(headlines).items()
    prepared, codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
    vqvae, _ = load_vqvae(paths.VQVAE)
    prior, _ = load_prior(paths.PRIOR)
    pixels, tokens = prepared["test"].pixels(slice(None)), codes["test"].rows(slice(None))
    labels = codes["test"].label_tensor(slice(None))
    with torch.no_grad():
        parameters = vqvae.decode_parameters(codes.layout.unflatten(tokens))
        distortion = vqvae.likelihood.nll(parameters, pixels).double().mean().item()
        nats, variance = prior.estimate(tokens, labels)
        nats = nats.double().sum(1).mean().item()
        error = (vqvae.likelihood.mean(parameters) - to_float(pixels)).double().square().mean().item()
    label = 0.0
    if labels is not None:
        counts = np.bincount(codes["train"].labels) + 1
        label = float(np.mean([-math.log(counts[y] / counts.sum()) for y in labels]))
    unit, bits = codes.layout.dimensions * math.log(2), metrics["bits_per_dim"]
    assert bits["distortion"] == pytest.approx(distortion / unit)
    assert bits["rate_prior"] == pytest.approx((nats + label) / unit)
    if prior_config(prior)["name"] == "counts":
        assert bits["rate_counts"] == pytest.approx(bits["rate_prior"])
    assert ("rate_prior_standard_error" in bits) == (not prior.exact)
    if not prior.exact:
        error_of_mean = variance.double().sum().sqrt().item() / len(tokens)
        assert bits["rate_prior_standard_error"] == pytest.approx(error_of_mean / unit)
        assert error_of_mean > 0
    assert bits["rate_uniform"] == pytest.approx(codes.layout.uniform_nats / unit)
    assert bits["total_prior"] == pytest.approx(bits["distortion"] + bits["rate_prior"])
    assert metrics["nats_per_token"]["prior"] == pytest.approx(nats / codes.layout.num_tokens)
    assert metrics["reconstruction"]["nmse"] == pytest.approx(error / prepared.stats.variance)


def test_a_labelled_run_is_sampled_and_measured(tiny_run, capsys):
    tiny_run()
    metrics = run_all()
    check_figures(metrics)
    assert all(0 <= metrics["classifier"][name] <= 1 for name in KEYS["classifier"])
    assert metrics["classifier"]["real_accuracy"] > 0.9  # brightness tells the classes apart
    printed = capsys.readouterr().out
    assert "images a second" in printed
    assert "total_prior" in printed and "frechet_distance" not in printed, "all figures are many; a few are printed"
    assert "every figure: results/evaluate/metrics.json" in printed
    pictures = [Path(word.rstrip(";")) for word in printed.splitlines()[-1].split() if ".png" in word]
    assert len(pictures) == 2 and all(picture.exists() for picture in pictures)
    for kind in ("default", "unguided"):
        split = open_samples(paths.SAMPLES)[kind]
        assert split.images.shape == (14, 1, 8, 8) and split.images.dtype == np.uint8
        assert np.asarray(split.labels).tolist() == [i % 3 for i in range(14)]
    with Image.open(paths.SAMPLES / "grid.png") as grid:
        assert grid.height == 3 * 50 + 2  # three classes
        assert 3 * 50 + 2 < grid.width < 3 * 50 + 2 + 100  # three columns, and the classes' names
        assert not grid.info  # no metadata
    assert (paths.RESULTS / "evaluate" / "images" / "reconstructions.png").is_file()


def test_a_class_without_training_images_is_no_part_of_the_classifiers_figures(tiny_run):
    tiny_run(untrained=1)
    found = run_all()["classifier"]
    test, (judge, _) = open_prepared(paths.PREPARED)["test"], load_classifier(paths.CLASSIFIER)
    right = predict(judge, test.pixels(slice(None))) == test.label_tensor(slice(None))
    known = test.label_tensor(slice(None)) != 1
    assert found["real_accuracy"] == pytest.approx(right[known].float().mean().item())
    assert found["real_accuracy"] > 0.9
    shares = test.label_tensor(slice(None))[known].bincount() / known.sum()
    assert found["majority_accuracy"] == pytest.approx(shares.max().item())
    assert right.float().mean() < 0.8, "the class without training images makes a difference"
    rights = {}
    for kind, name in {"default": "sample_agreement", "unguided": "unguided_agreement"}.items():
        split = open_samples(paths.SAMPLES)[kind]
        assert np.asarray(split.labels).tolist() == [0, 2] * 7
        rights[kind] = (predict(judge, split.pixels(slice(None))) == split.label_tensor(slice(None))).float()
        assert found[name] == pytest.approx(rights[kind].mean().item())
    names, share = (
        open_prepared(paths.PREPARED).stats.classes,
        {n: rights["default"][n // 2 :: 2].mean() for n in (0, 2)},
    )
    rows = [{"class": names[n], "sample_agreement": pytest.approx(share[n].item()), "samples": 7} for n in (0, 2)]
    assert found["per_class"] == rows


def test_without_a_test_image_of_a_trained_class_the_classifiers_accuracy_is_unavailable(tiny_run):
    folder = tiny_run(untrained=int(fixed_choice(20, 1)[0]) % 3)  # the class of the only image that is measured
    run_all()
    metrics = limit_images(folder, 1)
    assert set(metrics["classifier"]) == {"sample_agreement", "unguided_agreement", "per_class"}
    assert {name.removeprefix("classifier.") for name in metrics["unavailable"] if "classifier." in name} == {
        "real_accuracy",
        "majority_accuracy",
        "reconstruction_agreement",
    }
    assert "no test image is of a class" in metrics["unavailable"]["classifier.real_accuracy"]


def test_an_unlabelled_run_of_two_levels_and_rectangles_says_unavailable(tiny_run):
    tiny_run((3, 8, 12), classes=0, strides=[2, 2], sizes=[5, 9])
    metrics = run_all()
    check_figures(metrics)
    assert set(metrics["unavailable"]) == {"classifier", "distribution"}
    assert metrics["unavailable"]["classifier"] == "the images have no labels"
    assert len(metrics["codebook"]["per_level"]) == 2
    assert open_samples(paths.SAMPLES)["default"].labels is None


def test_without_a_classifier_what_needs_one_is_left_out_and_that_is_said(tiny_run):
    folder = tiny_run()
    raw = json.loads((folder / "params.yaml").read_text())
    raw["classifier"]["name"] = "none"
    (folder / "params.yaml").write_text(json.dumps(raw))
    metrics = run_all()
    check_figures(metrics)
    assert "classifier" not in metrics
    assert set(metrics["unavailable"]) == {"classifier", "distribution"}
    assert metrics["unavailable"]["classifier"] == "classifier.name is none"
    assert len(open_samples(paths.SAMPLES)["default"].labels) == 14  # samples are of classes all the same


def test_images_too_small_for_a_measure_have_the_other_figures(tiny_run):
    tiny_run((1, 8, 2), strides=[2])
    metrics = run_all()
    assert {"psnr", "nmse"} == set(metrics["reconstruction"]) and "classifier" not in metrics
    assert sorted(metrics["unavailable"]) == ["classifier", "distribution", "reconstruction.ssim"]
    assert "8 x 2 pixels are smaller than 3 x 3" in metrics["unavailable"]["reconstruction.ssim"]


def limit_images(folder: Path, count: int | None) -> dict:
    """Set evaluation.images, measure, and return the figures."""
    raw = json.loads((folder / "params.yaml").read_text())
    raw["evaluation"]["images"] = count
    (folder / "params.yaml").write_text(json.dumps(raw))
    assert evaluate.main([]) == 0
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def test_some_of_the_test_images_are_measured_and_the_figures_say_how_many(tiny_run, capsys):
    folder = tiny_run()
    whole = run_all()
    assert whole["images"]["test"] == 20 == limit_images(folder, 1000)["images"]["test"]
    assert "fixed random choice" not in capsys.readouterr().out
    some = limit_images(folder, 7)
    assert some["images"] == {"test": 7, "samples": 14}
    assert "measured on 7 of the 20 test images" in capsys.readouterr().out
    rows = fixed_choice(20, 7)
    prepared, codes = open_prepared(paths.PREPARED), open_codes(paths.CODES)
    vqvae, _ = load_vqvae(paths.VQVAE)
    prior, _ = load_prior(paths.PRIOR)
    pixels, tokens, labels = prepared["test"].pixels(rows), codes["test"].rows(rows), codes["test"].label_tensor(rows)
    with torch.no_grad():
        parameters = vqvae.decode_parameters(codes.layout.unflatten(tokens))
        nats = vqvae.likelihood.nll(parameters, pixels).double().mean().item()
        error = (vqvae.likelihood.mean(parameters) - to_float(pixels)).double().square().mean().item()
        rate = prior.estimate(tokens, labels)[0].double().sum(1).mean().item()
    assert some["bits_per_dim"]["distortion"] == pytest.approx(nats / (codes.layout.dimensions * math.log(2)))
    assert some["nats_per_token"]["prior"] == pytest.approx(rate / codes.layout.num_tokens)
    assert some["reconstruction"]["nmse"] == pytest.approx(error / prepared.stats.variance)
    assert some["codebook"]["usage"] == len(np.unique(tokens)) / 8
    assert some["bits_per_dim"] != whole["bits_per_dim"]


def test_the_measured_images_depend_on_their_number_alone_and_smaller_choices_are_parts_of_larger_ones():
    choices = [set(fixed_choice(1000, count).tolist()) for count in (10, 100, 999)]
    assert [len(choice) for choice in choices] == [10, 100, 999]
    assert choices[0] < choices[1] < choices[2]
    assert fixed_choice(1000, None).tolist() == fixed_choice(1000, 2000).tolist() == list(range(1000))
    assert max(choices[1]) > 900 and min(choices[1]) < 100  # and not the first, which may be of one class


def test_the_picture_shows_images_of_every_class_in_turn(tiny_run):
    tiny_run()
    run_all()
    split = open_prepared(paths.PREPARED)["test"]
    with Image.open(paths.RESULTS / "evaluate" / "images" / "reconstructions.png") as image:
        picture = torch.from_numpy(np.array(image))[..., 0]
    rows = spread_over_classes(split, 32)
    assert np.asarray(split.labels)[rows[:6]].tolist() == [0, 1, 2, 0, 1, 2]
    for place in range(8):
        left = 2 + place * 50
        assert torch.equal(picture[2:50:6, left : left + 48 : 6], split.pixels(rows)[place, 0])


@pytest.mark.parametrize(
    ("prior", "strides", "sizes"),
    [("pixelcnn", [4], 5), pytest.param("masked", [4], 5, marks=pytest.mark.slow), ("chain", [2, 2], [5, 9])],
)
def test_a_run_with_a_learned_prior_is_measured_by_the_definition(tiny_run, prior, strides, sizes):
    tiny_run(strides=strides, sizes=sizes, prior=prior)
    check_figures(run_all())


def test_sampling_and_measuring_again_write_the_same_bytes(tiny_run):
    tiny_run()
    run_all()
    files = [p for p in Path().rglob("*") if p.is_file() and {"results", "models"} & set(p.parts)]
    before = {path: path.read_bytes() for path in files}
    shutil.rmtree(paths.SAMPLES)
    Path(".state").rename("state of the first run")  # or the classifier would find itself finished
    run_all()
    assert {path: path.read_bytes() for path in files} == before


def edited_parent(folder: Path, parent: str) -> None:
    """As if the artifact had been made from another parent."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(manifest_text(raw["kind"], raw["parents"] | {parent: "f" * 64}, raw["files"]))


@pytest.mark.parametrize(
    ("child", "parent", "remedy"),
    [
        (paths.CODES, "vqvae", "stage1_vqvae.extract"),
        (paths.CODES, "prepared", "stage1_vqvae.extract"),
        (paths.SAMPLES, "prior", "sampling.sample"),
        (paths.CLASSIFIER, "prepared", "evaluation.train_classifier"),
    ],
)
def test_evaluate_refuses_what_was_made_from_something_else(tiny_run, capsys, child, parent, remedy):
    tiny_run()
    assert classifier.main([]) == sample.main([]) == 0
    edited_parent(child, parent)
    capsys.readouterr()
    assert evaluate.main([]) == 2
    error = capsys.readouterr().err
    folder = {"vqvae": paths.VQVAE, "prepared": paths.PREPARED, "prior": paths.PRIOR}[parent]
    assert "f" * 16 in error and read_manifest(folder, parent).identity[:16] in error and remedy in error
    assert error.count("\n") == 1
    assert not (paths.RESULTS / "evaluate").exists()


def test_sample_refuses_a_prior_of_another_vqvae_and_keeps_the_old_samples(tiny_run, capsys):
    tiny_run()
    assert sample.main([]) == 0
    before = read_manifest(paths.SAMPLES, "samples").identity
    edited_parent(paths.PRIOR, "vqvae")
    assert sample.main([]) == 2
    error = capsys.readouterr().err
    assert "f" * 16 in error and read_manifest(paths.VQVAE, "vqvae").identity[:16] in error
    assert read_manifest(paths.SAMPLES, "samples").identity == before
