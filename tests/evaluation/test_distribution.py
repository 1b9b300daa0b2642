"""The distances that `evaluate` measures, on a tiny run as a user has it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.image.kid import poly_mmd
from torchvision.models import mobilenet_v2
from whole_runs import by_hand, copies, succeed, torchrun

from evaluation import evaluate, train_classifier
from evaluation.choices import fixed_choice
from evaluation.distances import Moments, frechet_distance, kernel_distance, neighbour_figures
from evaluation.distribution import Distribution
from evaluation.gathered import Gathered
from sampling import sample
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.cli.preset import leaves
from tessera.codes.store import open_codes
from tessera.features.networks.build import build_features
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples

pytestmark = pytest.mark.slow

COMPARED = ("reconstructions", "default", "unguided", "floor")
FIGURES = {"frechet_distance", "kid", "precision", "recall", "density", "coverage", "images", "features"}


def measured(folder: Path, features: dict[str, Any] | None = None) -> dict[str, Any]:
    """The figures of a run whose samples and classifier are made first, if they are not there."""
    raw = json.loads((folder / "params.yaml").read_text())
    raw["evaluation"]["features"] |= features or {}
    (folder / "params.yaml").write_text(json.dumps(raw))
    for entry, made in ((train_classifier, paths.CLASSIFIER), (sample, paths.SAMPLES)):
        assert made.exists() or entry.main([]) == 0
    assert evaluate.main([]) == 0
    return json.loads((paths.RESULTS / "evaluate" / "metrics.json").read_text())


def vectors_of_the_run() -> dict[str, torch.Tensor]:
    """The features of every set of images of the run, computed at once."""
    network, prepared, samples = (
        build_features({"name": "classifier"}),
        open_prepared(paths.PREPARED),
        open_samples(paths.SAMPLES),
    )
    pipeline, codes = TwoStagePipeline.load(paths.MODELS, "cpu"), open_codes(paths.CODES)
    rebuilt = to_uint8(pipeline.decode_tokens(codes["test"].rows(slice(None))))
    training = prepared["train"].pixels(slice(None))
    pixels = {"test": prepared["test"].pixels(slice(None)), "reconstructions": rebuilt, "training": training}
    pixels |= {kind: samples[kind].pixels(slice(None)) for kind in ("default", "unguided")}
    with torch.no_grad():
        return {name: network.vectors(to_float(images)).double() for name, images in pixels.items()}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return frechet_distance(*(Moments(one.shape[1]).add(x) for x in (one, other)))


def check_classes(found: dict[str, Any], vectors: dict[str, torch.Tensor]) -> None:
    """Each class has distances of its own."""
    labels = open_prepared(paths.PREPARED)["test"].label_tensor(slice(None))
    for name in COMPARED:
        assert [figures["class"] for figures in found[name]["per_class"]] == ["class 0", "class 1", "class 2"]
    shown = vectors["default"][np.arange(14) % 3 == 1]
    figures = found["default"]["per_class"][1]
    expected = distance(vectors["test"][labels == 1], shown)
    assert figures["frechet_distance"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (figures["images"], figures["test_images"]) == (5, 7)


def test_every_figure_is_its_definition_on_the_features_of_all_images(tiny_run: Callable) -> None:
    metrics = measured(tiny_run())
    found, vectors = metrics["distribution"], vectors_of_the_run()
    check_classes(found, vectors)
    real, train = vectors["test"], vectors["training"]
    floors = {count: train[fixed_choice(len(train), count)] for count in (14, 20)}
    for name in COMPARED:
        shown = floors[14] if name == "floor" else vectors[name]
        figures = found[name]
        assert set(figures) >= FIGURES and figures["features"] == "classifier"
        assert figures["images"] == len(shown) == (20 if name == "reconstructions" else 14)
        assert figures["frechet_distance"] == pytest.approx(distance(real, shown), rel=1e-4, abs=1e-6)
        equal = min(len(real), len(shown))
        if name != "reconstructions":
            halves = [x[: len(shown)] for x in (real, shown)]
            assert kernel_distance(*halves) == pytest.approx(poly_mmd(*halves).item(), rel=1e-4, abs=1e-6)
        expected = kernel_distance(real, shown, paired=name == "reconstructions")
        assert figures["kid"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        halves = [x[fixed_choice(len(x), equal)] for x in (real, shown)]
        expected = neighbour_figures(*halves)
        assert {key: figures[key] for key in expected} == pytest.approx(expected)
        for figure in ("kid", "frechet_distance"):
            low, high = figures[f"{figure}_interval"]
            assert low < figures[figure] < high
        if name != "floor":
            expected = distance(real, floors[len(shown)])
            assert figures["frechet_distance_floor"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found["features"] == "classifier" and found["dimensions"] == real.shape[1]
    assert "14 images are no more than the 16 dimensions of classifier" in found["default"]["note"]
    assert "note" not in found["reconstructions"]
    assert metrics["codebook"]["tokens"] == 4 and metrics["codebook"]["tokens_that_number_training"] == 2  # 8² > 48


def test_the_interval_of_the_frechet_distance_is_that_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many kept images four times as many images have half the error."""
    monkeypatch.setattr("evaluation.gathered.KEPT", 50)
    widths = {}
    for count in (50, 200):
        compared = Distribution.__new__(Distribution)
        compared.network, compared.width, compared.sets = SimpleNamespace(name="stub"), 3, {}
        for seed, name in enumerate(("test", "default")):
            gathered = Gathered(count, 3, torch.device("cpu"))
            vectors = torch.empty(count, 3)
            vectors[gathered.rows] = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) + 3 * seed
            others = np.setdiff1d(np.arange(count), gathered.rows)
            vectors[others] = vectors[gathered.rows].repeat(3, 1)[: len(others)]
            gathered.add(np.arange(count), vectors)
            compared.sets[name] = gathered
        found = compared._compare("default", compared.sets["default"], None)
        widths[count] = [found[f"{figure}_interval"][1] - found[figure] for figure in ("frechet_distance", "kid")]
    assert widths[200] == pytest.approx([widths[50][0] / 2, widths[50][1]])


def test_samples_that_are_training_images_are_told(tiny_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_run()
    before = measured(folder)["memorisation"]
    train, vectors = open_prepared(paths.PREPARED)["train"], vectors_of_the_run()
    for name, key in (("default", "sample_distance"), ("test", "test_distance")):
        nearest = torch.cdist(vectors[name], vectors["training"]).min(1).values
        assert before[key] == pytest.approx(nearest.median().item(), rel=1e-4)
    assert (before["samples"], before["test_images"], before["training_images"]) == (14, 20, 48)
    copied = dict.fromkeys(("default", "unguided"), train)
    monkeypatch.setattr("evaluation.measurements.open_samples", lambda folder: copied)
    after = measured(folder)["memorisation"]
    assert after["sample_distance"] == pytest.approx(0, abs=1e-3) and after["nearer_than_test"] > 0.95
    with Image.open(paths.RESULTS / "evaluate" / "images" / "closest.png") as picture:
        shown = torch.from_numpy(np.array(picture))[..., 0]
    assert torch.equal(shown[2:50], shown[52:100])  # each sample above the same training image


def test_distances_that_take_long_are_named_on_the_terminal(
    tiny_run: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_run()
    measured(folder)
    capsys.readouterr()
    monkeypatch.setattr("tessera.console.LONG", 0.05)

    def slow(*arguments: Any) -> dict[str, float]:
        time.sleep(0.3)
        return neighbour_figures(*arguments)

    monkeypatch.setattr("evaluation.distribution.neighbour_figures", slow)
    measured(folder)
    assert "distances ..." in capsys.readouterr().err


def test_a_missing_file_leaves_out_the_distances_alone_and_says_what_to_give(tiny_run: Callable, capsys) -> None:
    metrics = measured(tiny_run(), {"name": "mobilenet_v2", "file": "absent.safetensors"})
    said = metrics["unavailable"]["distribution"]
    assert (
        said.startswith("evaluation.features: absent.safetensors: no such file; give the weights") and "\n" not in said
    )
    assert "distribution" not in metrics and metrics["classifier"]["real_accuracy"] > 0.9
    assert said in capsys.readouterr().out


@pytest.fixture
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The features of a network with random weights, which lie in a file."""
    torch.manual_seed(0)
    file, network = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors", mobilenet_v2(weights=None)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.fill_(0.1)  # or hardly anything would come through so many untrained layers
    save_file(network.state_dict(), file)
    return {"name": "mobilenet_v2", "file": str(file), "side": 16}


def test_images_without_labels_have_every_figure_but_those_of_classes(tiny_run: Callable, mobilenet: dict) -> None:
    folder = tiny_run((3, 8, 12), classes=0, strides=[2, 2], sizes=[5, 9])
    without = measured(folder)
    assert "the images have no labels" in without["unavailable"]["distribution"]
    metrics = measured(folder, mobilenet)
    found = metrics["distribution"]
    assert list(metrics["unavailable"]) == ["classifier"]
    assert all(set(found[name]) >= FIGURES and "per_class" not in found[name] for name in COMPARED)
    named = [value for name, value in leaves(metrics).items() if name.endswith(".features")]
    assert named == ["mobilenet_v2"] * 6  # the section's, of each comparison, and of memorisation
    with Image.open(paths.RESULTS / "evaluate" / "images" / "closest.png") as picture:
        assert picture.mode == "RGB"


def test_two_processes_measure_what_one_does(tiny_run: Callable, mobilenet: dict, repository: Path) -> None:
    measured(tiny_run(), mobilenet)
    environment = by_hand(repository, forked=True) | {"ACCELERATE_USE_CPU": "1"}
    folders = copies(Path.cwd(), "one", "two")
    for folder, launcher in zip(folders, (["python"], torchrun(2)), strict=True):
        succeed(folder, [*launcher, "-m", "evaluation.evaluate"], environment)
    files = [(folder / "results" / "evaluate" / "metrics.json").read_text() for folder in folders]
    one, two = (leaves({name: json.loads(text)[name] for name in ("classifier", "distribution")}) for text in files)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == (value if isinstance(value, str | list) else pytest.approx(value, abs=1e-9, rel=1e-9)), name


# Runs `evaluate` with a network that cannot be loaded by the process whose rank is named on the command line.
FAILS_ON_ONE = """
import os, sys
from evaluation import distribution, evaluate
from tessera.errors import UserError

def build(features, build=distribution.build_features):
    if os.environ["RANK"] == sys.argv[1]:
        raise UserError("weights.pth: no such file")
    return build(features)

distribution.build_features = build
sys.exit(evaluate.main([]))
"""


def test_weights_that_one_of_two_processes_cannot_load_leave_the_distances_out(
    tiny_run: Callable, mobilenet: dict, repository: Path
) -> None:
    folder = tiny_run()
    assert "distribution" in measured(folder, mobilenet)
    (folder / "fails.py").write_text(FAILS_ON_ONE)
    environment = by_hand(repository, forked=True) | {"ACCELERATE_USE_CPU": "1"}
    for rank, reason in (("0", "weights.pth: no such file"), ("1", "could be loaded on some processes only")):
        succeed(folder, [*torchrun(2), "fails.py", rank], environment)
        metrics = json.loads((folder / "results" / "evaluate" / "metrics.json").read_text())
        assert "distribution" not in metrics and reason in metrics["unavailable"]["distribution"]
