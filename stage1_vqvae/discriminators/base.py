"""The base class of all discriminators. docs/architecture.md lists what a discriminator must define."""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """Tells images from reconstructions. A subclass is built with the images' number of channels and its parameters.

    Attributes:
        whole_batch: why the logits of an image depend on the rest of the batch; "" if they do not.
    """

    whole_batch: str = ""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits, high for images and low for reconstructions.

        Args:
            images: float (B, C, H, W) in [-1, 1].

        Returns:
            one map (B, 1, h, w) for each part of the discriminator, which count equally.
        """
        raise NotImplementedError
