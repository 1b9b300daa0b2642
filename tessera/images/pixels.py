"""Turns uint8 pixels into float images and back."""

from __future__ import annotations

import torch


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Turn uint8 pixels into float32 images in [-1, 1], of the same shape."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Turn float images into the nearest uint8 pixels, of the same shape. Values outside [-1, 1] are clipped."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round_().to(torch.uint8)
