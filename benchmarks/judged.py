"""Sets of images in the features of a network that judges, for benchmarks."""

from __future__ import annotations

import numpy as np
import torch

from evaluation.distances import kernel_distance
from evaluation.gathered import Gathered
from tessera.features.networks.base import FeatureNetwork
from tessera.images.pixels import to_float

TOGETHER = 64  # images that are decoded and judged at once


class Judged:
    """Sets of images by name, in the features of the judge."""

    def __init__(self, network: FeatureNetwork, image_shape: tuple[int, int, int]) -> None:
        self.network, self.sets = network, {}
        self.width = network.vectors(torch.zeros(1, *image_shape)).shape[1]

    @torch.no_grad()
    def see(self, name: str, count: int, first: int, pixels: torch.Tensor) -> None:
        """Add uint8 images from place `first` on to a set of `count` images."""
        gathered = self.sets.setdefault(name, Gathered(count, self.width, "cpu"))
        for start in range(0, len(pixels), TOGETHER):
            part = to_float(pixels[start : start + TOGETHER])
            numbers = np.arange(first + start, first + start + len(part))
            gathered.add(numbers, self.network.vectors(part))

    def distances(self, name: str, paired: bool = False) -> tuple[float, float]:
        """The Fréchet distance and KID of a set and the real images; `paired`: see `kernel_distance`."""
        real, shown = self.sets["real"], self.sets[name]
        return real.frechet_distance(shown), kernel_distance(real.vectors, shown.vectors, paired)
