"""A feature network that needs no weights from elsewhere, for tests of what looks at features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessera.features.networks.base import FeatureNetwork


class TinyFeatures(FeatureNetwork):
    """Two maps of fixed random features; the second has half the size."""

    widths = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 4, stride=2, padding=1)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        shallow = F.relu(self.first(images))
        return [shallow, F.relu(self.second(shallow))]
