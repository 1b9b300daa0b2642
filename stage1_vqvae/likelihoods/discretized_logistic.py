"""Independent discretised logistics, whose locations and scales the decoder gives.

Source: Salimans et al. 2017, "PixelCNN++", section 2.1.
"""

from __future__ import annotations

import torch

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.intervals import images_of, values_of
from stage1_vqvae.likelihoods.logistic import clipped_mean, log_logistic
from stage1_vqvae.likelihoods.sections import MinLogScale
from tessera.parameters.sections import Section


class Parameters(Section):
    """Parameters of `discretized_logistic`."""

    min_log_scale: MinLogScale


class DiscretizedLogistic(Likelihood):
    """Independent discretised logistics; the decoder gives each pixel value its own location and log scale."""

    def __init__(self, *, min_log_scale: float) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale

    def parameter_channels(self, channels: int) -> int:
        """Locations, then log scales."""
        return 2 * channels

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """-log p(x | z), nats per dimension."""
        pixels = values_of(images)
        return -self._log_prob(parameters.float(), pixels, images).mean()

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The expectation, tails and all."""
        return clipped_mean(*self._parts(parameters.float()))

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        parameters = parameters.double()
        pixels = pixels.to(parameters.device)
        return self._log_prob(parameters, pixels, images_of(pixels))

    def _log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return log_logistic(*self._parts(parameters), pixels, images)

    def _parts(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locations and log scales, each (B, C, H, W)."""
        location, log_scale = parameters.chunk(2, 1)
        return location, log_scale.clamp_min(self.min_log_scale)
