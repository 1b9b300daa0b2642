"""Pictures of a prior's samples while it is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling import previews
from sampling.pipeline import TwoStagePipeline
from stage2_prior import train
from tessera import paths
from tessera.images.grids import image_grid
from tessera.images.pixels import to_uint8

FOLDER = paths.RESULTS / "train_prior" / "images"


def pictures() -> dict[int, torch.Tensor]:
    """The pictures by step, uint8 (3, height, width)."""
    found = {}
    for path in FOLDER.glob("step-*.png"):
        with Image.open(path) as image:
            found[int(path.stem.removeprefix("step-"))] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return found


@pytest.mark.parametrize(("classes", "rows", "labels"), [(0, 8, None), (3, 8, [0, 1, 2]), (4, 2, [0, 2])])
def test_a_picture_shows_what_the_prior_of_that_step_samples(tiny_run, monkeypatch, classes, rows, labels) -> None:
    monkeypatch.setattr(previews, "CLASSES", rows)
    tiny_run(classes=classes, prior="transformer", guidance_scale=2.0 if classes else 1.0)
    best = json.loads((paths.RESULTS / "train_prior" / "metrics.json").read_text())["validation"]["step"]
    labels = labels and [label for label in labels for _ in range(4)]
    pipeline = TwoStagePipeline.load("models", "cpu")
    images = to_uint8(pipeline.generate(len(labels or range(32)), labels, seed=0))
    grid = image_grid(images, 4 if classes else 8)
    picture = pictures()[best]
    assert torch.equal(picture[:, :, -grid.shape[2] :], grid)
    assert classes == 0 or picture.shape[2] > grid.shape[2], "the names stand on the left"


def test_the_training_goes_on_without_the_vqvae_and_says_that_there_are_no_pictures(tiny_run, capsys) -> None:
    tiny_run(prior="transformer")
    weights = Path("models/prior/model.safetensors").read_bytes()
    for folder in (paths.VQVAE, paths.PRIOR, Path(".state"), FOLDER):
        shutil.rmtree(folder)
    capsys.readouterr()
    assert train.main([]) == 0
    told = capsys.readouterr().err
    assert told.count("note: no more pictures of this training (UserError: models/vqvae: no vqvae here") == 1
    assert pictures() == {} and Path("models/prior/model.safetensors").read_bytes() == weights
