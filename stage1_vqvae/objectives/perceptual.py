"""A perceptual distance: how far apart two images are in the features of a frozen network, at several depths.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1 (LPIPS).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stage1_vqvae.objectives.base import Term
from stage1_vqvae.objectives.distance import distance
from stage1_vqvae.objectives.frozen import Frozen, RandomPart, all_parts
from stage1_vqvae.objectives.sections import TermParams, TrainedAgainst, check_part
from tessera.parameters.sections import NonNegative, Positive, PositiveFloat


class Parameters(TermParams):
    """The section `perceptual` of params.yaml.

    `depth_factor`: the weight of each feature map relative to the shallower one before it. It has no effect where the
    network weighs its channels. `part`: the side in pixels of a square at a random place, which is all that a step
    compares; None: whole images. Enlarged to the network's `side`, a part has the scale of images that are larger by as
    much, at the cost of small ones. `features`: the network, whose judgement is then no figure of the same run.
    """

    weight: NonNegative
    depth_factor: PositiveFloat
    part: Positive | None
    features: TrainedAgainst

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        check_part(self.part, shape)


class Perceptual(Term):
    """The distance of two images in the features of a frozen network.

    Args:
        channels: of the images.
        weight: of the term.
        depth_factor, part: see `Parameters`.
        features: the network's parameters, {"name": NAME, NAME: {...}}.
    """

    def __init__(
        self, channels: int, *, weight: float, depth_factor: float, part: int | None, features: dict[str, Any]
    ) -> None:
        super().__init__(weight)
        self.depth_factor, self.part, self.features = depth_factor, RandomPart(part), Frozen(features)

    def begin(self, random: torch.Generator) -> None:
        self.part.move(random)

    def forward(self, made: Tensor, images: Tensor) -> Tensor:
        """The distance of a random part in training, and the mean over all parts in evaluation."""
        if self.part.side is None or self.training:
            return self._distance(self.part.of(made), self.part.of(images))
        pairs = zip(all_parts(made, self.part.side), all_parts(images, self.part.side), strict=True)
        return torch.stack([self._distance(*pair) for pair in pairs]).mean()

    def _distance(self, made: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features.maps(images)
        return distance(self.features.maps(made), wanted, self.features.network.channel_weights, self.depth_factor)
