"""Mirrored and shifted copies of images: pixels stay uint8, and borders repeat their edge."""

from __future__ import annotations

import torch


def shift(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Move each image of (B, C, H, W) by its own (B,) whole pixels; what enters repeats the edge."""
    batch, channels, height, width = pixels.shape
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    image, channel = torch.arange(batch)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return pixels[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augment(pixels: torch.Tensor, horizontal_flip: bool, max_shift: int, random: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and shift each by up to `max_shift` pixels each way, drawing for the whole batch."""
    if horizontal_flip:
        flip = torch.rand(len(pixels), generator=random) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    if max_shift:
        offsets = torch.randint(-max_shift, max_shift + 1, (2, len(pixels)), generator=random)
        pixels = shift(pixels, offsets[0], offsets[1])
    return pixels
