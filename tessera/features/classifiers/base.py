"""What every classifier is: a network that gives each class of an image a logit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Classifier(nn.Module):
    """Tells which class an image shows. A subclass defines `logits`.

    Attributes:
        config: the values it was built from.
        widths: the number of channels of each of `maps`, shallow first.
    """

    widths: tuple[int, ...] = ()

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config = config

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of each class, float32 (B, num_classes), of uint8 pixels (B, C, H, W)."""
        raise NotImplementedError

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (B, c_i, h_i, w_i) at several depths, shallow first, of images float (B, C, H, W) in [-1, 1].

        The mean of the last one over its positions is what the logits are computed from.
        """
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The training loss, and figures of the batch.

        Args:
            pixels: uint8 (B, C, H, W).
            labels: int64 (B,).

        Returns:
            the mean cross-entropy in nats, a scalar; and {"accuracy": the share of images whose largest logit is that
            of their label, a scalar}.
        """
        logits = self.logits(pixels)
        return F.cross_entropy(logits, labels), {"accuracy": (logits.argmax(-1) == labels).float().mean()}

    def compile_blocks(self) -> None:
        """Compile the layers that take the time."""


@torch.no_grad()
def predict(classifier: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    """The most probable class of each image, int64 (B,) on the CPU, of uint8 pixels (B, C, H, W)."""
    return classifier.logits(pixels.to(next(classifier.parameters()).device)).argmax(-1).cpu()
