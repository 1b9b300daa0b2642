"""A projected discriminator: small heads that judge the features of a frozen network.

Source: Sauer et al. 2021, "Projected GANs Converge Faster", section 3. Features at several depths go through fixed
random projections that mix channels (CCM) and depths (CSM), and each depth has a discriminator of its own. The heads
here keep the resolution of their map, so that they fit images of any size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stage1_vqvae.discriminators.base import Discriminator
from stage1_vqvae.discriminators.sections import DiscriminatorParams
from stage1_vqvae.objectives.distance import distance
from stage1_vqvae.objectives.frozen import Frozen, RandomPart
from stage1_vqvae.objectives.sections import TrainedAgainst, check_part
from tessera.parameters.sections import NonNegative, Positive


class Parameters(DiscriminatorParams):
    """The section `projected` of params.yaml.

    `channels`: of the projected features and inside the heads. `part`: the side in pixels of a square at a random
    place, which is all that is judged; None: whole images. `matching`: factor of the distance of both features that are
    judged, in which the decoder also learns to come near to each image. It is multiplied by the weight and the ramp of
    the term `adversarial`, so that 16 in a term of weight 0.3 is `perceptual` of weight 4.8, without a pass of its own
    through the network.
    """

    second_order: ClassVar[bool] = False  # of the frozen network, whose operations need not have one

    channels: Positive
    part: Positive | None
    matching: NonNegative
    features: TrainedAgainst

    @property
    def matched(self) -> bool:
        return self.matching > 0

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        check_part(self.part, shape)


class Projected(Discriminator):
    """Heads on projected features, one for each depth.

    A head is a 3x3 convolution, a leaky ReLU and a 1x1 convolution to one channel, with spectral norms, which are
    estimated once a step.

    Args:
        image_channels: of the images.
        channels, part, matching: see `Parameters`.
        features: the frozen network's parameters, {"name": NAME, NAME: {...}}.
    """

    def __init__(
        self, image_channels: int, *, channels: int, part: int | None, matching: float, features: dict[str, Any]
    ) -> None:
        super().__init__()
        self.part, self.matching, self.features = RandomPart(part), matching, Frozen(features)
        widths = self.features.network.widths
        self.depths = len(widths)
        for depth, width in enumerate(widths):
            self.register_buffer(f"channel_mix_{depth}", _random_kernel(channels, width, 1))
            self.register_buffer(f"depth_mix_{depth}", _random_kernel(channels, channels, 3))
        self.heads = nn.ModuleList(_head(channels) for _ in widths)
        self._estimated = False  # whether the step has moved the estimates of the spectral norms

    def begin(self, random: torch.Generator) -> None:
        self.part.move(random)
        self._estimated = False

    def projected(self, maps: list[Tensor]) -> list[Tensor]:
        """The features of every depth, each mixed with those of all deeper ones, (B, channels, h_i, w_i)."""
        found: list[Tensor] = []
        for depth in reversed(range(self.depths)):
            mixed = F.conv2d(maps[depth], getattr(self, f"channel_mix_{depth}"))
            if found:
                deeper = F.interpolate(found[0], mixed.shape[-2:], mode="bilinear", align_corners=False)
                mixed = mixed + deeper
            found.insert(0, F.conv2d(mixed, getattr(self, f"depth_mix_{depth}"), padding=1))
        return found

    def look(self, made: Tensor, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The frozen network's maps of both, of the same part."""
        with torch.no_grad():
            wanted = self.features.maps(self.part.of(images))
        return self.features.maps(self.part.of(made)), wanted

    def judge(self, seen: list[Tensor]) -> list[Tensor]:
        # Each pass in training mode would move them, so that micro-batches would train another discriminator.
        self.heads.train(self.training and not self._estimated)
        self._estimated = True
        return [head(features) for head, features in zip(self.heads, self.projected(seen), strict=True)]

    def matching_loss(self, made: list[Tensor], images: list[Tensor]) -> Tensor | None:
        if not self.matching:
            return None
        return self.matching * distance(made, images, self.features.network.channel_weights)


def _random_kernel(outputs: int, inputs: int, size: int) -> Tensor:
    """A fixed kernel (outputs, inputs, size, size) that keeps the scale of its input."""
    return torch.randn(outputs, inputs, size, size) / (inputs * size**2) ** 0.5


def _head(channels: int) -> nn.Sequential:
    first, last = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 1, 1)
    return nn.Sequential(spectral_norm(first), nn.LeakyReLU(0.2), spectral_norm(last))
