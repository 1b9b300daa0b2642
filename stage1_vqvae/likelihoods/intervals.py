"""Probabilities of intervals, exact in the tails: what makes a density a distribution over 8-bit pixels.

A pixel's value v in 0..255 stands at x = v/127.5 − 1 and owns the interval x ± 1/255; the outermost values own the
tails (Salimans et al. 2017, PixelCNN++, equation 2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

HALF_BIN = 1 / 255


def images_of(pixels: torch.Tensor) -> torch.Tensor:
    """Pixel values 0..255 at where they stand in [-1, 1], float64."""
    return pixels.double() / 127.5 - 1


def values_of(images: torch.Tensor) -> torch.Tensor:
    """The other way, in the dtype of the images: whole numbers."""
    return images.add(1).mul(127.5).round()


def edges(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The interval of each uint8 pixel value, float64, the outermost ones infinite."""
    images = images_of(pixels)
    lower = torch.where(pixels == 0, -math.inf, images - HALF_BIN)
    return lower, torch.where(pixels == 255, math.inf, images + HALF_BIN)


def log_normal_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """log(Φ(upper) − Φ(lower)) without cancellation: in the right tail it looks from the other side."""
    flip = lower > 0
    low = torch.where(flip, -upper, lower)
    high = torch.where(flip, -lower, upper)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    difference = torch.where(log_low == -math.inf, -math.inf, log_low - log_high)
    return log_high + torch.log(-torch.expm1(difference))


def log_laplace_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """log(F(upper) − F(lower)), F(u) = e^u/2 below 0 and 1 − e^−u/2 above, without cancellation."""
    flip = lower > 0
    low = torch.where(flip, -upper, lower)
    high = torch.where(flip, -lower, upper)
    below = high - math.log(2) + torch.log(-torch.expm1(low - high))  # both edges on the left
    across = torch.log(-(torch.expm1(low.clamp(max=0)) + torch.expm1(-high.clamp(min=0)))) - math.log(2)
    return torch.where(high <= 0, below, across)


def log_logistic_interval(
    lower: torch.Tensor, upper: torch.Tensor, width: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """log(σ(b) − σ(a)) by σ(b) σ(−a) (1 − e^{a−b}), which neither cancels nor overflows.

    Where `first`, a is −∞, and where `last`, b is ∞; by masks, since an infinite edge would make the gradient NaN.
    `width` is b − a, whose digits are lost in the edges themselves when they lie far out.
    """
    gap = torch.log(-torch.expm1(-width))
    return (
        F.logsigmoid(upper).masked_fill(last, 0.0)
        + F.logsigmoid(-lower).masked_fill(first, 0.0)
        + gap.masked_fill(first | last, 0.0)
    )
