"""The small classifier that tells which class an image shows."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module
from tessera.errors import UserError
from tessera.images.pixels import to_float

SMALLEST = 4  # the shorter side, in pixels, at which pooling stops


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions. Group norm makes an image's class independent of the rest of the batch."""
    layers: list[nn.Module] = []
    for first, second in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(first, second, 3, padding=1), nn.GroupNorm(math.gcd(8, second), second), nn.ReLU()]
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Tells the class of an image: blocks of convolutions, a mean over positions, and a linear layer.

    Pooling halves height and width between two blocks.

    Attributes:
        config: the values that the classifier was built from, see `__init__`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Build it from configuration values.

        Args:
            config: `image_shape` (C, H, W); `num_classes`; `channels` of the first block, which double with each
                halving until they are four times as many; `dropout` before the last layer.

        Raises:
            UserError: the images are smaller than 4 x 4 pixels.
        """
        super().__init__()
        self.config = config
        channels, height, width = config["image_shape"]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"the classifier needs images of at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}; "
                "raise data.height and data.width, or set data.use_labels: false"
            )
        halvings = int(math.log2(min(height, width) / SMALLEST))
        widths = [config["channels"] * min(4, 2**i) for i in range(halvings + 1)]
        blocks: list[nn.Module] = [_block(channels, widths[0])]
        for narrow, wide in pairwise(widths):
            blocks += [nn.MaxPool2d(2), _block(narrow, wide)]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(config["dropout"])
        self.head = nn.Linear(widths[-1], config["num_classes"])

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of each class, float32 (B, num_classes), of uint8 pixels (B, C, H, W)."""
        return self.head(self.dropout(self.blocks(to_float(pixels)).mean((2, 3)))).float()

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The training loss, which is the mean cross-entropy in nats, and the accuracy on the batch."""
        logits = self.logits(pixels)
        return F.cross_entropy(logits, labels), {"accuracy": (logits.argmax(-1) == labels).float().mean()}


def load_classifier(folder: Path) -> tuple[Classifier | None, Manifest]:
    """The published classifier in evaluation mode on the CPU, or None if the images have no labels; and its manifest.

    Raises:
        UserError: it is missing, damaged, or not a classifier that this version builds.
    """
    model, manifest = load_module(
        folder, "classifier", lambda c: Classifier(c["classifier"]) if c["available"] else nn.Identity()
    )
    return (model if isinstance(model, Classifier) else None), manifest


@torch.no_grad()
def predict(classifier: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    """The most probable class of each image, int64 (B,) on the CPU, of uint8 pixels (B, C, H, W)."""
    return classifier.logits(pixels.to(next(classifier.parameters()).device)).argmax(-1).cpu()
