"""The VQGAN encoder and decoder: residual blocks with group norm at each resolution, attention at some.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", appendix A; blocks as
in Ho et al. 2020. One level. The contract is in conv.py.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from stage1_vqvae.networks.base import Network
from tessera.parameters.sections import Dropout, Misfit, Positive, Section

EPSILON = 1e-6


class Parameters(Section):
    """Parameters of `resnet`; the width at each resolution is `channels` times a multiplier."""

    channels: Positive
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=2)]
    residual_blocks: Positive
    attention_factors: tuple[Positive, ...]
    z_channels: Positive
    groups: Positive
    dropout: Dropout

    levels: ClassVar[int] = 1

    @property
    def factor(self) -> int:
        """The image's height and width must be multiples of this."""
        return 2 ** (len(self.multipliers) - 1)

    def fits_together(self) -> None:
        if self.channels % self.groups:  # the width of the first convolution, of which all others are multiples
            raise Misfit(f"groups {self.groups} must divide channels {self.channels}, of which widths are multiples")
        factors = [2**i for i in range(len(self.multipliers))]
        if unknown := [f for f in self.attention_factors if f not in factors]:
            raise Misfit(f"attention_factors: {unknown[0]} is no downsampling factor here; choose from {factors}")


class ResBlock(nn.Module):
    """Group norm, swish, 3x3, twice, dropout before the second; added to the input, by a 1x1 where widths differ."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (nn.GroupNorm(groups, width, EPSILON) for width in (inputs, outputs))
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        return self.shortcut(x) + self.second(self.dropout(F.silu(self.second_norm(h))))


class Attention(nn.Module):
    """Every position attends to every other, with one head as wide as the feature map; added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPSILON)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)  # (B, 1, h w, C) each
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).view_as(x)
        return x + self.out(h)


class Downsample(nn.Module):
    """3x3 of stride 2, one more pixel on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel twice in each direction, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResNetwork(Network):
    """Encoder and decoder of one level, with a 1x1 to the codes' width and one back.

    Args:
        image_shape: (C, H, W); outputs: channels of the likelihood's parameters; codebook_dim: D, width of z.
        channels, multipliers: the width at each resolution, from the image's on, is a product of both.
        residual_blocks: at each resolution; the decoder has one more.
        attention_factors: the downsampling factors at which there is attention after each block, exact for rectangles
            too. The papers' "resolution r" of images with a side of s pixels is factor s / r: 16 is 16 of 256.
        z_channels: width between the encoder and the 1x1.
        groups: of the group norms.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        codebook_dim: int,
        *,
        channels: int,
        multipliers: list[int],
        residual_blocks: int,
        attention_factors: list[int],
        z_channels: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]

        def block(inputs: int, width: int) -> ResBlock:
            return ResBlock(inputs, width, groups, dropout)

        def middle() -> list[nn.Module]:
            return [block(widths[-1], widths[-1]), Attention(widths[-1], groups), block(widths[-1], widths[-1])]

        def blocks(inputs: int, resolution: int, count: int) -> list[nn.Module]:
            width, layers = widths[resolution], []
            for index in range(count):
                layers.append(block(width if index else inputs, width))
                if 2**resolution in attention_factors:
                    layers.append(Attention(width, groups))
            return layers

        def end(width: int, channels: int) -> list[nn.Module]:
            return [nn.GroupNorm(groups, width, EPSILON), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]

        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels, 3, padding=1)]
        inputs = channels
        for resolution, width in enumerate(widths):
            layers += blocks(inputs, resolution, residual_blocks)
            layers += [Downsample(width)] if resolution + 1 < len(widths) else []
            inputs = width
        self.encoder = nn.Sequential(*layers, *middle(), *end(widths[-1], z_channels))
        self.to_codes = nn.Conv2d(z_channels, codebook_dim, 1)

        layers = [nn.Conv2d(codebook_dim, z_channels, 1), nn.Conv2d(z_channels, widths[-1], 3, padding=1), *middle()]
        inputs = widths[-1]
        for resolution in reversed(range(len(widths))):
            layers += blocks(inputs, resolution, residual_blocks + 1)
            layers += [Upsample(widths[resolution])] if resolution else []
            inputs = widths[resolution]
        self.decoder = nn.Sequential(*layers, *end(widths[0], outputs))
        self.grids = self.grids_of(image_shape, multipliers=multipliers)

    @staticmethod
    def grids_of(
        image_shape: tuple[int, int, int], *, multipliers: list[int], **others: object
    ) -> list[tuple[int, int]]:
        """The one level's (height, width)."""
        factor = 2 ** (len(multipliers) - 1)
        return [(image_shape[1] // factor, image_shape[2] // factor)]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, C, H, W) to a list of one feature map."""
        return [self.encoder(images)]

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """z (B, D, h, w) from the feature map."""
        return self.to_codes(feature)

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> None:
        """No level follows."""

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        """z_q of the level to likelihood parameters (B, outputs, H, W)."""
        return self.decoder(quantized[0])
