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
from sampling import sample
from stage1_vqvae.model import load_vqvae
from stage2_prior.priors.build import load_prior, prior_config
from tessera import paths
from tessera.artifacts.manifests import manifest_text, read_manifest
from tessera.codes.store import open_codes
from tessera.features.classifier import load_classifier, predict
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples

KEYS = {
    "bits_per_dim": {"distortion", "rate_uniform", "rate_counts", "rate_prior", "total_uniform", "total_prior"},
    "nats_per_token": {"uniform", "counts", "prior"},
    "reconstruction": {"psnr", "ssim", "nmse"},
    "codebook": {"usage", "perplexity"},
    "classifier": {"real_accuracy", "reconstruction_agreement", "sample_agreement", "unguided_agreement"},
}


def run_all() -> dict:
    for entry in (classifier, sample, evaluate):
        assert entry.main([]) == 0
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def check_figures(metrics: dict) -> None:
    """Every key of the design, and the likelihood figures against the definition, image by image."""
    for section, names in KEYS.items():
        assert names <= set(metrics[section])
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
    assert "images a second" in capsys.readouterr().out
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
    assert right.float().mean() < 0.8, "the class without training images makes a difference"
    for kind, name in {"default": "sample_agreement", "unguided": "unguided_agreement"}.items():
        split = open_samples(paths.SAMPLES)[kind]
        assert np.asarray(split.labels).tolist() == [0, 2] * 7
        right = predict(judge, split.pixels(slice(None))) == split.label_tensor(slice(None))
        assert found[name] == pytest.approx(right.float().mean().item())


def test_an_unlabelled_run_of_two_levels_and_rectangles_says_unavailable(tiny_run):
    tiny_run((3, 8, 12), classes=0, strides=[2, 2], sizes=[5, 9])
    metrics = run_all()
    check_figures(metrics)
    assert set(metrics["classifier"].values()) == {"unavailable"}
    assert len(metrics["codebook"]["per_level"]) == 2
    assert open_samples(paths.SAMPLES)["default"].labels is None


@pytest.mark.parametrize(
    ("prior", "strides", "sizes"), [("pixelcnn", [4], 5), ("masked", [4], 5), ("chain", [2, 2], [5, 9])]
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


def test_top_k_over_every_codebook_is_one_line_and_leaves_the_samples(tiny_run, capsys):
    folder = tiny_run()
    raw = json.loads((folder / "params.yaml").read_text())
    raw["sampling"]["top_k"] = 9  # the published codebook has 8; params.yaml now speaks of a larger one
    raw["stage1_vqvae"]["quantizer"]["vq"]["codebook_size"] = 16
    (folder / "params.yaml").write_text(json.dumps(raw))
    assert sample.main([]) == 2
    assert "top_k" in capsys.readouterr().err
    assert not paths.SAMPLES.exists()


def test_several_processes_are_refused(tiny_run, capsys, monkeypatch):
    tiny_run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sample.main([]) == 2
    assert "python -m sampling.sample" in capsys.readouterr().err
