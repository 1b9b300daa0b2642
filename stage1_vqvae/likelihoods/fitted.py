"""Likelihoods whose one scale is fitted: the decoder gives a location alone, and training minimises a plain error."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar

from stage1_vqvae.likelihoods.base import Likelihood
from stage1_vqvae.likelihoods.intervals import HALF_BIN, edges
from tessera.randomness import generator

FIT_VALUES = 1_000_000  # pixel values kept for fitting one scale: its standard error is then 0.07%


class FittedScale(Likelihood):
    """Independent pixel values of one family around the decoder's output, with one scale for all.

    Training minimises `error` (the family at a fixed scale, up to constants); the scale itself is fitted on training
    data with the final weights and kept in the model.

    A family defines `log_interval` and `error`.

    Args:
        fit_images: number of training images on which the scale is fitted.
    """

    def __init__(self, *, fit_images: int) -> None:
        super().__init__()
        self.fit_images = fit_images
        self.register_buffer("log_scale", torch.zeros(()))

    @staticmethod
    def log_interval(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """log-probability of an interval, given its edges in units of the scale from the location."""
        raise NotImplementedError

    @staticmethod
    def error(location: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """The training loss, without a unit."""
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
        lower, upper = edges(pixels)
        return self.log_interval((lower - location) / scale, (upper - location) / scale)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], images: int) -> None:
        """Fit the scale by maximum likelihood, on FIT_VALUES of the pixel values."""
        locations, values = [], []
        for index, (parameters, pixels) in enumerate(pairs):
            location, value = parameters.float().flatten(), pixels.flatten()
            keep = math.ceil(FIT_VALUES * len(pixels) / images)
            if keep < len(value):  # at random: a stride would fall into step with the rows
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
