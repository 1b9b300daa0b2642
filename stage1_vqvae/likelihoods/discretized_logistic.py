"""Independent discretised logistic distributions. The decoder gives each one's location and scale.

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
    """The section `discretized_logistic` of params.yaml."""

    min_log_scale: MinLogScale


class DiscretizedLogistic(Likelihood):
    """Independent discretised logistic distributions, each with a location and a log scale from the decoder.

    Args:
        min_log_scale: smaller log scales count as this one.
    """

    def __init__(self, *, min_log_scale: float) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale

    def parameter_channels(self, channels: int) -> int:
        """Locations in the first half of the channels, log scales in the second."""
        return 2 * channels

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """−log p(x | z), a scalar in nats per dimension."""
        pixels = values_of(images)
        return -self._log_prob(parameters.float(), pixels, images).mean()

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The expected image. The tails beyond -1 and 1 count as -1 and 1."""
        return clipped_mean(*self._parts(parameters.float()))

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        parameters = parameters.double()
        pixels = pixels.to(parameters.device)
        return self._log_prob(parameters, pixels, images_of(pixels))

    def _log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return log_logistic(*self._parts(parameters), pixels, images)

    def _parts(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The locations and the log scales, each (B, C, H, W)."""
        location, log_scale = parameters.chunk(2, 1)
        return location, log_scale.clamp_min(self.min_log_scale)
