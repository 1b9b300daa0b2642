"""Mirrors and shifts images. Pixels stay uint8."""

from __future__ import annotations

import torch


def shift(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Shift each image by its own number of pixels. The pixels that come in repeat the edge.

    Args:
        pixels: (B, C, H, W).
        down, right: whole pixels (B,); negative numbers shift up and left.
    """
    batch, channels, height, width = pixels.shape
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    image, channel = torch.arange(batch)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return pixels[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augment(
    pixels: torch.Tensor,
    horizontal_flip: bool,
    max_shift: int,
    random: torch.Generator,
    batch_size: int,
    rows: slice = slice(None),
) -> torch.Tensor:
    """Mirror each image with probability 1/2, and shift it by up to `max_shift` pixels in each direction.

    Random numbers are drawn for a whole batch, so that an image's augmentation does not depend on which of the batch's
    images are at hand.

    Args:
        pixels: uint8 (m, C, H, W), the images of some rows of a batch.
        horizontal_flip: whether images are mirrored at all.
        random: from which the batch's random numbers are drawn.
        batch_size: number of images in the whole batch.
        rows: the batch's rows that `pixels` are.
    """
    if horizontal_flip:
        flip = (torch.rand(batch_size, generator=random) < 0.5)[rows]
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    if max_shift:
        offsets = torch.randint(-max_shift, max_shift + 1, (2, batch_size), generator=random)[:, rows]
        pixels = shift(pixels, offsets[0], offsets[1])
    return pixels
