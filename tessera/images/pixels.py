"""uint8 pixels to float images and back."""

from __future__ import annotations

import torch


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images to the nearest uint8 pixels; values outside [-1, 1] are clipped."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round_().to(torch.uint8)
