"""Independent discretised Gaussian distributions with one fitted scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stage1_vqvae.likelihoods.fitted import FittedScale
from stage1_vqvae.likelihoods.intervals import log_normal_interval
from tessera.parameters.sections import Positive, Section


class Parameters(Section):
    """The section `gaussian` of params.yaml."""

    fit_images: Positive


class Gaussian(FittedScale):
    """A discretised normal distribution for each pixel value, all independent given the codes.

    The decoder gives each value's mean. One standard deviation for all values is fitted after training, see
    `FittedScale`. Training minimises the NMSE: the mean squared error over the variance of the training pixels, both of
    images in [-1, 1].
    """

    log_interval = staticmethod(log_normal_interval)

    @staticmethod
    def error(location: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        return F.mse_loss(location, images) / data_variance
