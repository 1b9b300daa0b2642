"""The classifier that tells which class an image shows."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from evaluation import train_classifier
from tessera import paths
from tessera.artifacts.arrays import ArrayWriter
from tessera.artifacts.files import json_text
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import build_classifier, load_classifier
from tessera.images.prepared import open_prepared

CONV = {"name": "conv", "num_classes": 7, "channels": 6, "dropout": 0.5}


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 9), (1, 28, 28), (3, 32, 64)])
def test_any_size_from_four_pixels_and_any_batch(shape):
    classifier = build_classifier(CONV | {"image_shape": shape}).eval()
    pixels = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    with torch.no_grad():
        logits = classifier.logits(pixels)
        assert logits.shape == (5, 7)
        assert torch.allclose(classifier.logits(pixels[2:3]), logits[2:3], atol=1e-5)
    assert torch.equal(predict(classifier, pixels), logits.argmax(-1))


def test_a_classifier_refuses_images_that_are_too_small():
    with pytest.raises(UserError, match="at least 4 x 4"):
        build_classifier(CONV | {"image_shape": (1, 2, 8)})


@pytest.fixture
def quick(write_params):
    training = {"steps": 40, "warmup_steps": 5, "batch_size": 16, "validate_every": 20}
    write_params(
        {f"classifier.training.{name}": value for name, value in training.items()} | {"classifier.conv.channels": 8}
    )


def brighten_by_class() -> None:
    """Replace data/prepared by images whose brightness tells their class."""
    prepared = open_prepared(paths.PREPARED)
    splits = {name: np.asarray(prepared[name].labels) for name in prepared.stats.images}
    random = np.random.default_rng(0)
    with publishing(paths.PREPARED, "prepared", {}) as folder:
        for name, labels in splits.items():
            with ArrayWriter(folder / name / "images.npy", (1, 8, 8), np.uint8) as writer:
                writer.append(random.integers(0, 60, (len(labels), 1, 8, 8)) + labels[:, None, None, None] * 60)
            with ArrayWriter(folder / name / "labels.npy", (), np.int64) as writer:
                writer.append(labels)
        (folder / "stats.json").write_text(json_text(prepared.stats.to_json()), encoding="utf-8")


def test_it_is_published_and_loads_from_its_own_files(quick, write_prepared):
    write_prepared()
    brighten_by_class()
    assert train_classifier.main([]) == 0
    paths.PREPARED.rename("elsewhere")
    classifier, manifest = load_classifier(paths.CLASSIFIER)
    assert not classifier.training and set(manifest.parents) == {"prepared"}
    metrics = json.loads((paths.RESULTS / "train_classifier" / "metrics.json").read_text())
    assert metrics["validation"]["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("shape", "classes", "name", "reason"),
    [
        ((1, 8, 8), 0, "conv", "the images have no labels"),
        ((1, 8, 8), 3, "none", "classifier.name is none"),
        ((1, 8, 2), 3, "conv", "images of 8 x 2 pixels are smaller than 4 x 4, which the classifier needs"),
    ],
)
def test_where_there_is_no_classifier_the_published_folder_says_why(
    quick, write_params, write_prepared, capsys, shape, classes, name, reason
):
    write_prepared(shape, classes=classes)
    write_params({"classifier.name": name, "data.width": shape[2], "extract_codes.shift": 0})
    assert train_classifier.main([]) == 0
    classifier, manifest = load_classifier(paths.CLASSIFIER)
    assert classifier is None and set(manifest.parents) == {"prepared"}
    assert reason in capsys.readouterr().out
    assert json.loads((paths.CLASSIFIER / "config.json").read_text()) == {"available": False, "reason": reason}
    metrics = json.loads((paths.RESULTS / "train_classifier" / "metrics.json").read_text())
    assert metrics == {"unavailable": reason}


@pytest.mark.parametrize("module", ["sampling.sample", "evaluation.evaluate", "evaluation.train_classifier"])
def test_help_imports_nothing_heavy(module):
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        f"except SystemExit as e: assert e.code == 0\n"
        f"heavy = {{'torch', 'datasets', 'transformers', 'accelerate', 'numpy'}} & set(sys.modules)\n"
        f"sys.exit(f'imported {{heavy}}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
