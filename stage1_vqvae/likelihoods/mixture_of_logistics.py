"""A mixture of discretised logistic distributions for each pixel, with coupled channels.

Source: Salimans et al. 2017, "PixelCNN++", sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.intervals import images_of, values_of
from stage1_vqvae.likelihoods.logistic import clipped_mean, log_logistic
from stage1_vqvae.likelihoods.sections import MinLogScale
from tessera.parameters.sections import Positive, Section

START = -2.0  # added to the decoder's log scales; from 0, the first minutes of training would only narrow the mixture


class Parameters(Section):
    """The section `mixture_of_logistics` of params.yaml."""

    components: Positive
    min_log_scale: MinLogScale


class MixtureOfLogistics(Likelihood):
    """A mixture of discretised logistic distributions for each pixel, whose channels are coupled in each component.

    Within a component, channel c has the location μ_c + Σ_{j<c} α_cj (x_j − μ_j), where x_j are the values of the
    channels before it and α lies in (−1, 1). PixelCNN++ writes the same family with the locations μ'_c + Σ α_cj x_j.
    The form here keeps the mean at μ, up to the tails, whatever the coupling is. The decoder can therefore learn the
    image and the correlation of the channels' errors independently. Pixels are independent of each other.

    Args:
        components: the number of components.
        min_log_scale: smaller log scales count as this one.
    """

    def __init__(self, *, components: int, min_log_scale: float) -> None:
        super().__init__()
        self.components, self.min_log_scale = components, min_log_scale

    def parameter_channels(self, channels: int) -> int:
        """For each component: a weight, C locations, C log scales less START, and C (C − 1)/2 couplings."""
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _parts(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The parts of the parameters, of K components.

        Returns:
            log weights (B, K, H, W), locations and log scales (B, K, C, H, W), couplings (B, K, C (C − 1)/2, H, W).
        """
        parts = parameters.unflatten(1, (self.components, -1))
        channels = {1 + 2 * c + c * (c - 1) // 2: c for c in (1, 2, 3)}[parts.shape[2]]
        sizes = [1, channels, channels, channels * (channels - 1) // 2]
        weight, location, log_scale, coupling = parts.split(sizes, 2)
        log_scale = (log_scale + START).clamp_min(self.min_log_scale)
        return weight.squeeze(2).log_softmax(1), location, log_scale, coupling.tanh()

    @staticmethod
    def _coupled(location: torch.Tensor, coupling: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The location (B, K, H, W) of a channel, given the values of all channels before it.

        Args:
            location: (B, K, C, H, W), the locations μ.
            coupling: (B, K, C (C − 1)/2, H, W), the couplings α.
            values: one tensor for each channel before it, (B, 1, H, W) or (B, K, H, W) in [-1, 1].
        """
        channel = len(values)
        first, coupled = channel * (channel - 1) // 2, location[:, :, channel]
        for before, value in enumerate(values):
            coupled = coupled + coupling[:, :, first + before] * (value - location[:, :, before])
        return coupled

    def _cumulative(self, parameters: torch.Tensor, pixels: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
        """log(weight · p(the first c channels | component)), (B, K, H, W), for each c from 0 to C."""
        weight, location, log_scale, coupling = self._parts(parameters)
        found, values = [weight], images.split(1, 1)
        for channel, (pixel, value) in enumerate(zip(pixels.split(1, 1), values, strict=True)):
            place = self._coupled(location, coupling, values[:channel])
            found.append(found[-1] + log_logistic(place, log_scale[:, :, channel], pixel, value))
        return found

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """−log p(x | z), a scalar in nats per dimension."""
        pixels = values_of(images)
        return -self._cumulative(parameters.float(), pixels, images)[-1].logsumexp(1).mean() / images.shape[1]

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The expected image.

        The mean of a coupled channel is taken at the means of the channels before it. That is exact, except for the
        tails that are moved to -1 and 1.
        """
        weight, location, log_scale, coupling = self._parts(parameters.float())
        means: list[torch.Tensor] = []
        for channel in range(location.shape[2]):
            means.append(clipped_mean(self._coupled(location, coupling, means), log_scale[:, :, channel]))
        return (weight.exp().unsqueeze(2) * torch.stack(means, 2)).sum(1).clamp(-1, 1)

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        parameters = parameters.double()
        pixels = pixels.to(parameters.device)
        joint = [part.logsumexp(1) for part in self._cumulative(parameters, pixels, images_of(pixels))]
        return torch.stack(joint, 1).diff(dim=1)
