"""Image grids as PNG files that a person can look at. A picture is uint8 (3, height, width)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

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
    """Lay out images row by row as one picture. A single image has no border.

    The picture is that of torchvision's `make_grid`, which is not used because torchvision takes two seconds to load.

    Args:
        pixels: uint8 (n, C, H, W), C 1 or 3.
        columns: images a row.

    Returns:
        uint8 (3, height, width).
    """
    tiles = enlarged(pixels, enlargement(pixels.shape)).expand(-1, 3, -1, -1)
    if len(tiles) == 1:
        return tiles[0].contiguous()
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    blank = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), GREY)
    tiles = F.pad(torch.cat([tiles, blank]), (PADDING, 0, PADDING, 0), value=GREY)
    picture = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.pad(picture, (0, PADDING, 0, PADDING), value=GREY)


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
