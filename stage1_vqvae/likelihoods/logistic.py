"""The log-probability and the mean of the discretised logistic distribution, without cancellation or overflow.

Source: Salimans et al. 2017, "PixelCNN++", sections 2.1 and 2.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.likelihoods.intervals import HALF_BIN, log_logistic_interval

MAX_LOG_SCALE = 50.0  # larger log scales count as this one; far beyond, an interval would have no width in float32


def log_logistic(
    location: torch.Tensor, log_scale: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """The log-probability of pixel values, in nats.

    Args:
        location: float, the location in the units of `images`.
        log_scale: float, the logarithm of the scale.
        pixels: pixel values from 0 to 255, of any dtype.
        images: the same values in [-1, 1].

    Returns:
        float, of the shape to which all arguments broadcast.
    """
    inverse = torch.exp(-log_scale.clamp(max=MAX_LOG_SCALE))
    lower, upper = (images - HALF_BIN - location) * inverse, (images + HALF_BIN - location) * inverse
    return log_logistic_interval(lower, upper, 2 * HALF_BIN * inverse, pixels == 0, pixels == 255)


def clipped_mean(location: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """The mean of a logistic distribution whose tails beyond -1 and 1 are moved to -1 and 1.

    The outermost pixel values include the tails in the same way. For location μ and scale s, the mean is
    -1 + s (softplus((μ + 1)/s) - softplus((μ - 1)/s)). For μ above 0 it is computed by symmetry from -μ, so that
    neither term is large. For a large scale the two terms are nearly equal, and their difference is computed as the
    logarithm of a ratio.

    Args:
        location: float.
        log_scale: float, of a shape that broadcasts with `location`.

    Returns:
        float in [-1, 1].
    """
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
    upper, lower, width = (1 - location.abs()) / scale, (-1 - location.abs()) / scale, 2 / scale
    narrow = F.softplus(upper) - F.softplus(lower)
    wide = torch.log1p(torch.sigmoid(lower) * torch.expm1(width.clamp(max=1)))
    mean = torch.where(width > 1, narrow, wide) * scale - 1
    return torch.where(location > 0, -mean, mean)
