"""Independent discretised Laplace distributions with one fitted scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from stage1_vqvae.likelihoods.fitted import FittedScale
from stage1_vqvae.likelihoods.intervals import log_laplace_interval
from tessera.parameters.sections import Positive, Section


class Parameters(Section):
    """The section `laplace` of params.yaml."""

    fit_images: Positive


class Laplace(FittedScale):
    """Discretised Laplace distributions. Training minimises the absolute error in standard deviations of the data."""

    log_interval = staticmethod(log_laplace_interval)

    @staticmethod
    def error(location: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        return F.l1_loss(location, images) / math.sqrt(data_variance)
