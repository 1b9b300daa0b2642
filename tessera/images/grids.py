"""Image grids as PNG files that a person can look at. A picture is uint8 (3, height, width)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from tessera.artifacts.files import replacing

READABLE = 48  # pixels; smaller images are enlarged by a whole number, so that pixels stay square and sharp
PADDING = 2
GREY = 128
COLUMNS = 8


def enlarged(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Images (..., H, W) with each pixel repeated, (..., factor * H, factor * W)."""
    return pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def enlargement(shape: tuple[int, ...]) -> int:
    """By how much images (..., H, W) are enlarged in a picture."""
    return max(1, -(-READABLE // max(shape[-2:])))


def image_grid(pixels: torch.Tensor, columns: int) -> torch.Tensor:
    """Lay out images row by row as one picture.

    Args:
        pixels: uint8 (n, C, H, W), C 1 or 3.
        columns: images a row.

    Returns:
        uint8 (3, height, width).
    """
    factor = enlargement(pixels.shape)
    return make_grid(enlarged(pixels, factor), nrow=columns, padding=PADDING, pad_value=GREY)


def stacked_grid(stacks: list[torch.Tensor]) -> torch.Tensor:
    """Lay out several versions of the same images as one picture, each image above its other versions.

    Args:
        stacks: the versions, each uint8 (n, C, H, W).

    Returns:
        uint8 (3, height, width).
    """
    count = len(stacks[0])
    columns = min(COLUMNS, count)
    rows = [part for band in zip(*(stack.split(columns) for stack in stacks), strict=True) for part in band]
    blank = torch.full_like(rows[-1][:1], GREY)
    rows = [torch.cat([row, blank.expand(columns - len(row), -1, -1, -1)]) for row in rows]
    return image_grid(torch.cat(rows), columns)


def save_grid(picture: torch.Tensor, path: Path) -> None:
    """Write a picture uint8 (3, height, width) as a PNG file. The same picture always gives the same bytes."""
    with replacing(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary, format="PNG")
