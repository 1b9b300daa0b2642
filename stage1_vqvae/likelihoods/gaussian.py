"""Independent discretised Gaussian distributions with one fitted scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.likelihoods.fitted import FittedScale
from stage1_vqvae.likelihoods.intervals import log_normal_interval
from tessera.parameters.sections import Positive, Section


class Parameters(Section):
    """Parameters of `gaussian`."""

    fit_images: Positive


class Gaussian(FittedScale):
    """Discretised Gaussians. Training minimises the squared error divided by the data's variance (the NMSE)."""

    log_interval = staticmethod(log_normal_interval)

    @staticmethod
    def error(location: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        return F.mse_loss(location, images) / data_variance
