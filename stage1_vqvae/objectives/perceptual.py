"""A perceptual distance: how far apart two images are in the features of a frozen network, at several depths.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1 (LPIPS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stage1_vqvae.objectives.base import Term
from stage1_vqvae.objectives.frozen import ONE_PART, Frozen, all_parts, random_part
from stage1_vqvae.objectives.sections import TermParams, TrainedAgainst, check_part
from tessera.parameters.sections import NonNegative, Positive, PositiveFloat

EPSILON = 1e-10  # added to the length of a feature vector, as LPIPS has it


class Parameters(TermParams):
    """Parameters of `perceptual`.

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
        self.depth_factor, self.part, self.features = depth_factor, part, Frozen(features)
        self.whole_batch = "" if part is None else ONE_PART

    def forward(self, made: Tensor, images: Tensor) -> Tensor:
        """The distance of a random part in training, and the mean over all parts in evaluation."""
        if self.part is None:
            return self._distance(made, images)
        both = torch.cat([made, images], 1)  # so that a part of both is of the same place
        parts = [random_part(both, self.part)] if self.training else all_parts(both, self.part)
        return torch.stack([self._distance(*part.chunk(2, 1)) for part in parts]).mean()

    def _distance(self, made: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features.maps(images)
        return distance(self.features.maps(made), wanted, self.features.network.channel_weights, self.depth_factor)


def distance(
    made: Sequence[Tensor],
    wanted: Sequence[Tensor],
    channel_weights: Sequence[Tensor] | None,
    depth_factor: float = 1.0,
) -> Tensor:
    """The mean distance over images, a scalar, in float32.

    At each depth the feature vectors of all positions are normalised to length 1. Their squared differences are summed
    over channels and averaged over positions. With channel weights the depths are summed, which is LPIPS. Otherwise
    they are averaged, so that the distance of an image lies between 0 and 4. In an equal average the deepest map has
    the largest gradient at the image, since it has few positions and every pixel moves each of them.

    Args:
        made: feature maps (B, c_i, h_i, w_i) of the reconstructions.
        wanted: those of the images.
        channel_weights: for each depth a weight (c_i,) of each channel; None: all are 1.
        depth_factor: the weight of each depth in the average, relative to the shallower one before it.
    """
    with torch.autocast(made[0].device.type, enabled=False):
        parts = []
        for depth, (one, other) in enumerate(zip(made, wanted, strict=True)):
            squares = (_normalised(one) - _normalised(other)).square()
            if channel_weights is not None:
                squares = squares * channel_weights[depth].to(squares).view(-1, 1, 1)
            parts.append(squares.sum(1).mean())
        if channel_weights is not None:
            return torch.stack(parts).sum()
        weights = [depth_factor**depth for depth in range(len(parts))]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)


def _normalised(features: Tensor) -> Tensor:
    features = features if features.dtype == torch.float64 else features.float()
    # The square root has no gradient at 0, where a ReLU may leave a whole vector.
    length = features.square().sum(1, keepdim=True).clamp_min(EPSILON**2).sqrt()
    return features / (length + EPSILON)
