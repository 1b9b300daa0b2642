"""The base class of likelihoods with one fitted scale, whose locations the decoder gives."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.intervals import HALF_BIN, edges
from tessera.randomness import generator

# Pixel values on which the scale is fitted. With a million of them, its standard error is 0.07%.
FIT_VALUES = 1_000_000


class FittedScale(Likelihood):
    """One family of distributions: the decoder's output is each value's location, and all values share one scale.

    Values are independent given the codes. Training minimises `error`, which is the negative log-density at a fixed
    scale but for a constant factor and a constant summand. The scale is fitted afterwards, on training images with the
    trained weights, and is saved with the model. A subclass defines `log_interval` and `error`.

    Args:
        fit_images: the number of training images on which the scale is fitted.
    """

    def __init__(self, *, fit_images: int) -> None:
        super().__init__()
        self.fit_images = fit_images
        self.register_buffer("log_scale", torch.zeros(()))

    @staticmethod
    def log_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """The log-probability of intervals under the family with location 0 and scale 1, given their edges."""
        raise NotImplementedError

    @staticmethod
    def error(location: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """The training loss, a scalar without a unit. The arguments are as in `loss`, with locations as parameters."""
        raise NotImplementedError

    def parameter_channels(self, channels: int) -> int:
        return channels

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        return self.error(parameters.float(), images, data_variance)

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters.float().clamp(-1, 1)

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        location = parameters.double()
        scale = self.log_scale.to(location.device).double().exp()
        return self._log_prob(location, pixels.to(location.device), scale)

    def _log_prob(self, location: torch.Tensor, pixels: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
        """The log-probability of each pixel value, of the shape of `pixels`, in the dtype of `location`."""
        lower, upper = edges(pixels)
        return self.log_interval((lower - location) / scale, (upper - location) / scale)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], images: int) -> None:
        """Fits the scale by maximum likelihood, on at most about FIT_VALUES random pixel values."""
        locations, values = [], []
        for index, (parameters, pixels) in enumerate(pairs):
            location, value = parameters.float().flatten(), pixels.flatten()
            keep = math.ceil(FIT_VALUES * len(pixels) / images)
            if keep < len(value):  # at random, since every n-th value might always be of the same column
                picks = torch.randint(len(value), (keep,), generator=generator("fit", index))
                location, value = location[picks.to(location.device)], value[picks.to(value.device)]
            locations.append(location.cpu())
            values.append(value.cpu())
        location, value = torch.cat(locations).double(), torch.cat(values)
        found = minimize_scalar(
            lambda log_scale: -self._log_prob(location, value, math.exp(log_scale)).mean().item(),
            bounds=(math.log(HALF_BIN) - 4, math.log(4.0)),
            method="bounded",
        )
        self.log_scale.fill_(float(found.x))
