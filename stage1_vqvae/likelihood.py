"""p(x | z): distributions over 8-bit pixels, given the decoder's parameters. Each sums to 1 over the 256 values.

A pixel's value v in 0..255 stands at x = v/127.5 − 1 and owns the interval x ± 1/255; the outermost values own the
tails (Salimans et al. 2017, PixelCNN++, equation 2). Probabilities are float64, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import nn

from common.randomness import generator

HALF_BIN = 1 / 255
FIT_VALUES = 1_000_000  # pixel values kept for fitting one scale: its standard error is then 0.07%


def log_normal_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """log(Φ(upper) − Φ(lower)) without cancellation: in the right tail it looks from the other side."""
    flip = lower > 0
    low = torch.where(flip, -upper, lower)
    high = torch.where(flip, -lower, upper)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    difference = torch.where(log_low == -math.inf, -math.inf, log_low - log_high)
    return log_high + torch.log(-torch.expm1(difference))


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


def _exact(parameters: torch.Tensor) -> torch.Tensor:
    """Float64, on the CPU where the device has none."""
    return (parameters.cpu() if parameters.device.type == "mps" else parameters).double()


class Gaussian(nn.Module):
    """Independent discretised Gaussians around the decoder's output, with one scale for all pixels.

    Training minimises the squared error over the data's variance, which is this likelihood at a fixed scale; the scale
    itself is fitted on training data with the final weights and kept in the model.
    """

    def __init__(self, *, fit_images: int) -> None:
        super().__init__()
        self.fit_images = fit_images
        self.register_buffer("log_scale", torch.zeros(()))  # float32: a device may have no float64

    def parameter_channels(self, channels: int) -> int:
        """Channels of the decoder's output for images of `channels`."""
        return channels

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """Mean squared error over the data's variance: the NMSE of the batch."""
        return F.mse_loss(parameters.float(), images) / data_variance

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The image (B, C, H, W) in [-1, 1]."""
        return parameters.float().clamp(-1, 1)

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """log p(x | z) of each uint8 pixel value, float64 (B, C, H, W), nats."""
        mu = _exact(parameters)
        return self._log_prob(mu, pixels.to(mu.device), self.log_scale.to(mu.device).double().exp())

    @staticmethod
    def _log_prob(mu: torch.Tensor, pixels: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
        images = pixels.double() / 127.5 - 1
        lower = torch.where(pixels == 0, -math.inf, images - HALF_BIN)
        upper = torch.where(pixels == 255, math.inf, images + HALF_BIN)
        return log_normal_interval((lower - mu) / scale, (upper - mu) / scale)

    def nll(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """-log p(x | z) (B,) nats an image of uint8 pixels (B, C, H, W)."""
        return -self.log_prob(parameters, pixels).flatten(1).sum(1)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Fit the scale by maximum likelihood on (parameters, uint8 pixels) pairs of training images."""
        mus, values = [], []
        for parameters, pixels in pairs:
            mus.append(parameters.float().flatten().cpu())
            values.append(pixels.flatten().cpu())
        mu, value = torch.cat(mus), torch.cat(values)
        if len(mu) > FIT_VALUES:  # at random: a stride would fall into step with the rows
            picks = torch.randint(len(mu), (FIT_VALUES,), generator=generator("fit"))
            mu, value = mu[picks], value[picks]
        mu = mu.double()
        found = minimize_scalar(
            lambda log_scale: -self._log_prob(mu, value, math.exp(log_scale)).mean().item(),
            bounds=(math.log(HALF_BIN) - 4, math.log(4.0)),
            method="bounded",
        )
        self.log_scale.fill_(float(found.x))


class DiscretizedLogistic(nn.Module):
    """Independent discretised logistics; the decoder gives each pixel value its own location and log scale."""

    def __init__(self, *, min_log_scale: float) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale
        self.fit_images = 0

    def parameter_channels(self, channels: int) -> int:
        """Channels of the decoder's output for images of `channels`: locations, then log scales."""
        return 2 * channels

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """-log p(x | z), nats a dimension."""
        pixels = images.add(1).mul(127.5).round()
        return -self._log_prob(parameters.float(), pixels, images).mean()

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The image (B, C, H, W) in [-1, 1]: the locations."""
        return parameters.float().chunk(2, 1)[0].clamp(-1, 1)

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """log p(x | z) of each uint8 pixel value, float64 (B, C, H, W), nats."""
        parameters = _exact(parameters)
        pixels = pixels.to(parameters.device)
        return self._log_prob(parameters, pixels, pixels.double() / 127.5 - 1)

    def _log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        location, log_scale = parameters.chunk(2, 1)
        inverse = torch.exp(-log_scale.clamp_min(self.min_log_scale))
        lower, upper = (images - HALF_BIN - location) * inverse, (images + HALF_BIN - location) * inverse
        return log_logistic_interval(lower, upper, 2 * HALF_BIN * inverse, pixels == 0, pixels == 255)

    def nll(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """-log p(x | z) (B,) nats an image of uint8 pixels (B, C, H, W)."""
        return -self.log_prob(parameters, pixels).flatten(1).sum(1)

    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Nothing to fit: the decoder gives every scale."""


LIKELIHOODS = {"gaussian": Gaussian, "discretized_logistic": DiscretizedLogistic}


def build_likelihood(config: dict[str, Any]) -> nn.Module:
    """The likelihood named in `config`."""
    return LIKELIHOODS[config["name"]](**config[config["name"]])
