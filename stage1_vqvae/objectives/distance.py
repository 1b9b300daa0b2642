"""How far apart the feature maps of two images are, at several depths.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1 (LPIPS).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-10  # added to the length of a feature vector, as LPIPS has it


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
