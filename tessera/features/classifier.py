"""The small classifier that judges samples: does an image show the class that it was asked for?"""

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

SMALLEST = 4  # pixels a side to which images are pooled at most


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions; group norm, so that a judgement never depends on the rest of the batch."""
    layers: list[nn.Module] = []
    for first, second in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(first, second, 3, padding=1), nn.GroupNorm(math.gcd(8, second), second), nn.ReLU()]
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """Blocks of convolutions, halving the image between them as far as its size allows, then a global average.

    Args:
        config: image_shape (C, H, W), each side at least 4; num_classes; channels of the first block, doubled with
            each halving up to fourfold; dropout before the last layer. Kept as `config`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
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
        """uint8 pixels (B, C, H, W) to float32 logits (B, num_classes)."""
        return self.head(self.dropout(self.blocks(to_float(pixels)).mean((2, 3)))).float()

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The training loss, mean cross-entropy in nats, and the batch's accuracy."""
        logits = self.logits(pixels)
        return F.cross_entropy(logits, labels), {"accuracy": (logits.argmax(-1) == labels).float().mean()}


def load_classifier(folder: Path) -> tuple[Judge | None, Manifest]:
    """The published classifier in eval mode on the CPU, or None where the data has no labels; and its manifest.

    Raises:
        UserError: missing, damaged, or not a classifier that this version builds.
    """
    judge, manifest = load_module(
        folder, "classifier", lambda c: Judge(c["judge"]) if c["available"] else nn.Identity()
    )
    return (judge if isinstance(judge, Judge) else None), manifest


@torch.no_grad()
def predict(judge: Judge, pixels: torch.Tensor) -> torch.Tensor:
    """The class int64 (B,) that each image of uint8 pixels (B, C, H, W) shows, on the CPU."""
    return judge.logits(pixels.to(next(judge.parameters()).device)).argmax(-1).cpu()
