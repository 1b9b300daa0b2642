"""Pictures of reconstructions while a VQ-VAE is trained."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from stage1_vqvae import train
from stage1_vqvae.model import load_vqvae
from stage1_vqvae.pictures import EXAMPLES
from tessera import paths
from tessera.images.examples import spread_over_classes
from tessera.images.grids import stacked_grid
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared

RESULTS = paths.RESULTS / "train_vqvae"


def test_a_picture_shows_the_same_images_above_what_the_model_of_that_step_makes_of_them(
    write_params: Callable, write_prepared: Callable
) -> None:
    write_prepared((1, 8, 8))
    write_params({"runtime.pictures": 1.0})
    assert train.main([]) == 0
    best = json.loads((RESULTS / "metrics.json").read_text())["validation"]["step"]
    model, split = load_vqvae(paths.VQVAE)[0], open_prepared(paths.PREPARED)["validation"]
    pixels = split.pixels(spread_over_classes(split, EXAMPLES))
    with torch.no_grad():
        images = to_uint8(model.decode(model.encode(to_float(pixels))))
    with Image.open(RESULTS / "images" / f"step-{best:09d}.png") as picture:
        shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(shown, stacked_grid([pixels, images]))
