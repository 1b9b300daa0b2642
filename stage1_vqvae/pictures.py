"""Pictures of images and their reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stage1_vqvae.model import VQVAE
from tessera.images.examples import spread_over_classes
from tessera.images.grids import stacked_grid
from tessera.images.pixels import to_float, to_uint8

if TYPE_CHECKING:
    from stage1_vqvae.task import VQVAETask

EXAMPLES = 16  # images in a picture of a training


@torch.no_grad()
def reconstructions(model: VQVAE, pixels: torch.Tensor, decoder: VQVAE | None = None) -> list[torch.Tensor]:
    """Images and their reconstructions, as the rows of a picture.

    Args:
        pixels: uint8 (B, C, H, W).
        decoder: the model that decodes the codes; None: `model` itself.

    Returns:
        uint8 (B, C, H, W) for each row: the images, their reconstructions from each level alone if there are several
        levels (from the scales up to each, where levels are scales), and their reconstructions from all levels.
    """
    codes = model.encode(to_float(pixels.to(next(model.parameters()).device)))
    levels = len(codes)
    shown = [model.network.shown_with(level) for level in range(levels)]
    if (whole := list(range(levels))) not in shown:
        shown.append(whole)
    decode = (decoder or model).decode
    return [pixels, *(to_uint8(decode(codes, only).cpu()) for only in shown)]


class Reconstructions:
    """Draws some validation images, spread over their classes, above their reconstructions: always the same images."""

    def __init__(self, task: VQVAETask) -> None:
        self.model = task.vqvae
        self.pixels = task.validation.pixels(spread_over_classes(task.validation, EXAMPLES))

    def __call__(self) -> torch.Tensor:
        return stacked_grid(reconstructions(self.model, self.pixels))
