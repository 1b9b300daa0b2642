"""What every likelihood is: a distribution p(x | z) over the 8-bit pixels of an image, given the decoder's output."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Likelihood(nn.Module):
    """p(x | z). `parameters` (B, parameter_channels(C), H, W) come from the decoder, pixels are uint8 (B, C, H, W).

    For each pixel value the probabilities of 0 to 255 sum to 1.
    """

    fit_images = 0  # how many training images `fit` takes; 0: the decoder gives all parameters, nothing is fitted

    def parameter_channels(self, channels: int) -> int:
        """Channels of the decoder's output for images of `channels`."""
        raise NotImplementedError

    def loss(self, parameters: torch.Tensor, images: torch.Tensor, data_variance: float) -> torch.Tensor:
        """What training minimises, a scalar: images (B, C, H, W) in [-1, 1], the variance of all training pixels."""
        raise NotImplementedError

    def mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """The image, float32 (B, C, H, W) in [-1, 1]: what is shown for z."""
        raise NotImplementedError

    def log_prob(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """log p of each pixel value given z, and where channels are coupled given the pixel's channels before it:
        float64 (B, C, H, W), nats."""
        raise NotImplementedError

    def nll(self, parameters: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """-log p(x | z), float64 (B,), nats per image."""
        return -self.log_prob(parameters, pixels).flatten(1).sum(1)

    def fit(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], images: int) -> None:
        """Fit what the decoder does not give on (parameters, pixels) of `images` training images in all."""
        raise NotImplementedError
