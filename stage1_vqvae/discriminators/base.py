"""The base class of all discriminators. docs/architecture.md lists what a discriminator must define."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor, nn


class Discriminator(nn.Module):
    """Tells images from reconstructions. A subclass is built with the images' number of channels and its parameters.

    Attributes:
        whole_batch: why the logits of an image depend on the rest of the batch; "" if they do not.
    """

    whole_batch: str = ""

    def begin(self, random: Generator) -> None:
        """Learn that a step begins, see `stage1_vqvae.objectives.base.Term.begin`."""

    def look(self, made: Tensor, images: Tensor) -> tuple[Any, Any]:
        """What is judged of reconstructions and of images, both float (B, C, H, W). By default they themselves.

        The decoder needs the gradient of reconstructions. A gradient penalty needs that of images too, so a
        discriminator that gives none is not of second order (`DiscriminatorParams.second_order`).
        """
        return made, images

    def judge(self, seen: Any) -> list[Tensor]:
        """The logits of one of the two that `look` returned."""
        return self(seen)

    def matching_loss(self, made: Any, images: Any) -> Tensor | None:
        """What the decoder minimises beside the logits, a scalar, given what `look` returned; None: nothing."""
        return None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits, high for images and low for reconstructions.

        Args:
            images: float (B, C, H, W) in [-1, 1].

        Returns:
            one map (B, 1, h, w) for each part of the discriminator, which count equally.
        """
        raise NotImplementedError
