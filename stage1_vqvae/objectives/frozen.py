"""Frozen feature networks inside a module that is trained. They are no part of what is trained, saved or published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.build import build_features


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


class RandomPart:
    """A square of `side` pixels at a random place. In a step it is the same of all images, wherever they are looked at.

    Args:
        side: in pixels; None: whole images.
    """

    def __init__(self, side: int | None) -> None:
        self.side = side
        self._place: list[float] | None = None  # from 0 (top, left) up to 1

    def move(self, random: torch.Generator) -> None:
        """Draw the place of the step that begins."""
        self._place = torch.rand(2, generator=random).tolist()

    def of(self, images: Tensor) -> Tensor:
        """The part of images (B, C, H, W).

        Raises:
            RuntimeError: no step has begun.
        """
        if self.side is None:
            return images
        if self._place is None:
            raise RuntimeError("a random part has its place from the beginning of a step on; call begin first")
        free = (length - self.side + 1 for length in images.shape[-2:])
        top, left = (int(share * count) for share, count in zip(self._place, free, strict=True))
        return images[..., top : top + self.side, left : left + self.side]


def all_parts(images: Tensor, side: int) -> list[Tensor]:
    """As few squares of `side` pixels as cover the images (B, C, H, W), at equal distances."""
    corners = []
    for length in images.shape[-2:]:
        last, count = length - side, -(-length // side)
        corners.append([round(last * number / max(1, count - 1)) for number in range(count)])
    return [images[..., top : top + side, left : left + side] for top in corners[0] for left in corners[1]]
