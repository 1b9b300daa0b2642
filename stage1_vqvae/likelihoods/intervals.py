"""Log-probabilities of intervals, exact in the tails. They turn a density into a distribution over 8-bit pixels.

The pixel value v, from 0 to 255, is mapped to the real number x = v/127.5 − 1. Its probability is that of the interval
from x − 1/255 to x + 1/255. The interval of 0 begins at −∞, and that of 255 ends at ∞.

Source: Salimans et al. 2017, "PixelCNN++", equation 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

HALF_BIN = 1 / 255  # half the width of a pixel value's interval


def images_of(pixels: torch.Tensor) -> torch.Tensor:
    """Maps pixel values v from 0 to 255, of any shape and dtype, to v/127.5 - 1: float64 in [-1, 1], same shape."""
    return pixels.double() / 127.5 - 1


def values_of(images: torch.Tensor) -> torch.Tensor:
    """Maps floats x in [-1, 1], of any shape, back to pixel values, 127.5 (x + 1) rounded. They are floats, too."""
    return images.add(1).mul(127.5).round()


def edges(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower and upper edges of the intervals of uint8 pixel values, float64. The outermost edges are infinite."""
    images = images_of(pixels)
    lower = torch.where(pixels == 0, -math.inf, images - HALF_BIN)
    return lower, torch.where(pixels == 255, math.inf, images + HALF_BIN)


def _in_the_left_tail(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intervals right of 0 are mirrored, since a distribution function is small and exact in the left tail alone."""
    flip = lower > 0
    return torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)


def log_normal_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The log-probability of intervals under a standard normal distribution, without cancellation.

    Args:
        lower: float64, the lower edges; −∞ is allowed.
        upper: float64, the upper edges; ∞ is allowed.
    """
    low, high = _in_the_left_tail(lower, upper)
    # The derivative of log_ndtr at -∞ is NaN, so an infinite edge is left out before log_ndtr sees it.
    infinite = low == -math.inf
    log_low, log_high = torch.special.log_ndtr(low.masked_fill(infinite, 0.0)), torch.special.log_ndtr(high)
    difference = torch.where(infinite | (log_low == -math.inf), -math.inf, log_low - log_high)
    return log_high + torch.log(-torch.expm1(difference))


def log_laplace_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The log-probability of intervals under a standard Laplace distribution, without cancellation.

    Its distribution function is e^u/2 for u below 0, and 1 − e^−u/2 above.

    Args:
        lower: float64, the lower edges; −∞ is allowed.
        upper: float64, the upper edges; ∞ is allowed.
    """
    low, high = _in_the_left_tail(lower, upper)
    below = high - math.log(2) + torch.log(-torch.expm1(low - high))  # for intervals with both edges left of 0
    across = torch.log(-(torch.expm1(low.clamp(max=0)) + torch.expm1(-high.clamp(min=0)))) - math.log(2)
    return torch.where(high <= 0, below, across)


def log_logistic_interval(
    lower: torch.Tensor, upper: torch.Tensor, width: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """The log-probability of intervals [a, b] under a standard logistic distribution.

    It is computed as the logarithm of σ(b) σ(−a) (1 − e^{a−b}), which equals σ(b) − σ(a) and neither cancels nor
    overflows. Masks mark infinite edges, because an edge of ∞ itself would give a gradient of NaN.

    Args:
        lower: float, the edges a.
        upper: float, the edges b.
        width: float, b − a. Far from 0, the difference of the two edges would have lost its digits.
        first: bool, where a counts as −∞.
        last: bool, where b counts as ∞.
    """
    gap = torch.log(-torch.expm1(-width))
    return (
        F.logsigmoid(upper).masked_fill(last, 0.0)
        + F.logsigmoid(-lower).masked_fill(first, 0.0)
        + gap.masked_fill(first | last, 0.0)
    )
