"""Frozen feature networks inside a module that is trained. They are no part of what is trained, saved or published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.build import build_features

ONE_PART = (
    "the same random part of all images of a batch is looked at; set part to null"  # why micro-batches are refused
)


class Frozen(nn.Module):
    """Holds a feature network (`network`), and has neither parameters nor state: no checkpoint holds its weights."""

    network: FeatureNetwork

    def __init__(self, params: dict[str, Any]) -> None:
        """params: {"name": NAME, NAME: {its parameters}}.

        Raises:
            UserError: see `tessera.features.networks.build.build_features`.
        """
        super().__init__()
        self.__dict__["network"] = build_features(params)  # past nn.Module, which would register it

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Moves the network as well when a module around it is moved."""
        self.network._apply(function)
        return super()._apply(function, recurse)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, c_i, h_i, w_i), shallow first, of float images (B, C, H, W) in [-1, 1]."""
        return self.network.maps(images)


def random_part(images: Tensor, side: int) -> Tensor:
    """The same square of `side` pixels of all images (B, C, H, W), at a random place."""
    top, left = (int(torch.randint(length - side + 1, ())) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def all_parts(images: Tensor, side: int) -> list[Tensor]:
    """As few squares of `side` pixels as cover the images (B, C, H, W), at equal distances."""
    corners = []
    for length in images.shape[-2:]:
        last, count = length - side, -(-length // side)
        corners.append([round(last * number / max(1, count - 1)) for number in range(count)])
    return [images[..., top : top + side, left : left + side] for top in corners[0] for left in corners[1]]
