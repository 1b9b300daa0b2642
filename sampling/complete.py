"""Completing one image: its known pixels stay, the rest is sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from sampling.pipeline import TwoStagePipeline
from stage0_images.parameters import DataParams
from stage0_images.pixels import BadImage, decoding, read_image
from tessera.errors import UserError
from tessera.images.grids import image_grid, save_grid
from tessera.images.pixels import to_float, to_uint8

WHITE = 250  # of 255, and above


def read_given(image: Path, mask: Path, params: DataParams) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, uint8 (C, H, W), and which of its pixels are known, bool (H, W): those where the mask is white.

    Both are fitted to the model's size as `prepare` fits images; a transparent mask is black. White begins at WHITE: a
    JPEG's is not exact.

    Raises:
        UserError: one cannot be read, or they have different sizes.
    """
    found, sizes = [], []
    black = params.model_copy(update={"channels": 1, "background": (0, 0, 0)})
    for path, reading in ((image, params), (mask, black)):
        try:
            with decoding():
                found.append(np.array(read_image(path, reading)))
                with Image.open(path) as opened:
                    sizes.append(ImageOps.exif_transpose(opened).size)
        except BadImage as error:
            raise UserError(f"{path}: {error}") from error
    if sizes[0] != sizes[1]:  # cut and scaled each in its own way, they would not lie on one another
        one, other = ("x".join(map(str, size)) for size in sizes)
        raise UserError(f"{mask}: {other} pixels, but {image} has {one}; make a mask of the image's own size")
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])[0] >= WHITE


def complete(
    pipeline: TwoStagePipeline,
    image: torch.Tensor,
    known: torch.Tensor,
    count: int,
    label: int | None,
    settings: dict[str, object],
) -> torch.Tensor:
    """`count` completions of one image, after the image with grey for what is unknown: uint8 (count + 1, C, H, W)."""
    labels = None if label is None else [label] * count
    images = to_float(image)[None].expand(count, -1, -1, -1)
    completed = pipeline.complete(images, known.expand(count, 1, -1, -1), labels, **settings)
    return torch.cat([image.masked_fill(~known, 128)[None], to_uint8(completed)])


def write(pictures: torch.Tensor, path: Path, columns: int) -> None:
    """The given image and its completions as one picture."""
    save_grid(image_grid(pictures, min(columns, len(pictures))), path)
