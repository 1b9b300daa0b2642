"""The base class of all likelihoods. docs/architecture.md lists what a likelihood must define."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Likelihood(nn.Module):
    """A distribution p(x | z) over the 8-bit pixels x of an image. The decoder's output gives its parameters.

    The probabilities of the values 0 to 255 of each pixel and channel sum to 1. In all methods, `parameters` are the
    decoder's output (B, parameter_channels(C), H, W) and `pixels` are uint8 (B, C, H, W).

    Attributes:
        fit_images: the number of training images that `fit` needs; 0 if the decoder gives all parameters.
    """

    fit_images = 0

    def parameter_channels(self, channels: int) -> int:
        """The number of channels that the decoder must output for images of `channels` channels."""
        raise NotImplementedError

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """Computes what training minimises.

        Args:
            parameters: the decoder's output.
            images: float (B, C, H, W) in [-1, 1].
            data_variance: the variance of all training pixels, in the units of `images`.

        Returns:
            scalar.
        """
        raise NotImplementedError

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The expected image, float32 (B, C, H, W) in [-1, 1]. It is shown as the reconstruction."""
        raise NotImplementedError

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The log-probability of each pixel value given z, float64 (B, C, H, W), in nats.

        Where channels are coupled, that of a channel is also given the channels before it of the same pixel.
        """
        raise NotImplementedError

    def nll(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """−log p(x | z) of each image, float64 (B,), in nats."""
        return -self.log_prob(parameters, pixels).flatten(1).sum(1)

    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], images: int) -> None:
        """Fits the parameters that the decoder does not give. Called where `fit_images` is above 0.

        Args:
            pairs: batches of (`parameters`, `pixels`) of training images.
            images: the number of images in all batches together.
        """
        raise NotImplementedError
