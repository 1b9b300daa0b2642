"""A small convolutional classifier."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from tessera.errors import UserError
from tessera.features.classifiers.base import Classifier
from tessera.features.classifiers.sections import ClassifierParams
from tessera.images.pixels import to_float
from tessera.parameters.sections import Count, Dropout, Positive
from tessera.parameters.training import TrainingParams

SMALLEST = 4  # the shorter side, in pixels, at which pooling stops


class Parameters(ClassifierParams):
    """The section `conv` of params.yaml. `channels`: of its first block."""

    smallest_side: ClassVar[int] = SMALLEST

    channels: Positive
    dropout: Dropout
    shift: Count
    training: TrainingParams

    def arguments(self) -> dict[str, Any]:
        return {"channels": self.channels, "dropout": self.dropout}


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with a norm and ReLU: (B, inputs, H, W) to (B, outputs, H, W).

    It is group norm, with which the class that is found for an image does not depend on the rest of the batch.
    """
    layers: list[nn.Module] = []
    for first, second in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(first, second, 3, padding=1), nn.GroupNorm(math.gcd(8, second), second), nn.ReLU()]
    return nn.Sequential(*layers)


class ConvClassifier(Classifier):
    """Tells the class of an image: blocks of convolutions, a mean over positions, and a linear layer.

    Pooling halves height and width between two blocks.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Build it from configuration values.

        Args:
            config: `image_shape` (C, H, W); `num_classes`; `channels` of the first block, which double with each
                halving until they are four times as many; `dropout` before the last layer.

        Raises:
            UserError: the images are smaller than 4 x 4 pixels.
        """
        super().__init__(config)
        channels, height, width = config["image_shape"]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"the classifier needs images of at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}; "
                "raise data.height and data.width, or set classifier.name: none"
            )
        halvings = int(math.log2(min(height, width) / SMALLEST))
        widths = [config["channels"] * min(4, 2**i) for i in range(halvings + 1)]
        blocks: list[nn.Module] = [_block(channels, widths[0])]
        for narrow, wide in pairwise(widths):
            blocks += [nn.MaxPool2d(2), _block(narrow, wide)]
        self.blocks, self.widths = nn.Sequential(*blocks), tuple(widths)
        self.dropout = nn.Dropout(config["dropout"])
        self.head = nn.Linear(widths[-1], config["num_classes"])

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.blocks(to_float(pixels)).mean((2, 3)))).float()

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for layer in self.blocks:
            images = layer(images)
            if not isinstance(layer, nn.MaxPool2d):
                found.append(images)
        return found

    def compile_blocks(self) -> None:
        self.blocks.compile()
