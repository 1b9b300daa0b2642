"""The discretised logistic distribution: log-probabilities and the mean, without cancellation or overflow.

Source: Salimans et al. 2017, "PixelCNN++", sections 2.1 and 2.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.likelihoods.intervals import HALF_BIN, log_logistic_interval

MAX_LOG_SCALE = 50.0  # far beyond, an interval has no width in float32


def log_logistic(
    location: torch.Tensor, log_scale: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """log-probability of pixel values 0..255, which stand at `images` in [-1, 1]; shapes broadcast."""
    inverse = torch.exp(-log_scale.clamp(max=MAX_LOG_SCALE))
    lower, upper = (images - HALF_BIN - location) * inverse, (images + HALF_BIN - location) * inverse
    return log_logistic_interval(lower, upper, 2 * HALF_BIN * inverse, pixels == 0, pixels == 255)


def clipped_mean(location: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Expectation of a logistic whose tails lie at -1 and 1, as the outermost pixel values own them.

    It is -1 + s (softplus((μ + 1)/s) - softplus((μ - 1)/s)), seen from the side where neither term is large, and where
    the scale is wide as a logarithm of their ratio: as it stands, it would cancel.
    """
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
    upper, lower, width = (1 - location.abs()) / scale, (-1 - location.abs()) / scale, 2 / scale
    narrow = F.softplus(upper) - F.softplus(lower)
    wide = torch.log1p(torch.sigmoid(lower) * torch.expm1(width.clamp(max=1)))
    mean = torch.where(width > 1, narrow, wide) * scale - 1
    return torch.where(location > 0, -mean, mean)
