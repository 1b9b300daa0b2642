"""VQGAN's encoder and decoder: residual blocks at each resolution, and attention at some resolutions. One level.

Sources: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", appendix A; Ho et al. 2020,
"Denoising Diffusion Probabilistic Models", for the residual and attention blocks.
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
    """The section `resnet` of params.yaml. The width at each resolution is `channels` times a multiplier."""

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
        """The number by which the image's height and width must be divisible."""
        return 2 ** (len(self.multipliers) - 1)

    def fits_together(self) -> None:
        if self.channels % self.groups:  # all widths are multiples of `channels`
            raise Misfit(f"groups {self.groups} must divide channels {self.channels}")
        factors = [2**i for i in range(len(self.multipliers))]
        if unknown := [f for f in self.attention_factors if f not in factors]:
            raise Misfit(f"attention_factors: {unknown[0]} is no downsampling factor here; choose from {factors}")


class ResBlock(nn.Module):
    """A residual block: twice a group norm, SiLU and a 3x3 convolution, with dropout before the second convolution.

    Where the widths of input and output differ, a 1x1 convolution of the input is added instead of the input.
    """

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
    """Attention over all positions behind a group norm, added to the input. One head is as wide as the feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPSILON)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)  # each (B, 1, h · w, C)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).view_as(x)
        return x + self.out(h)


class Downsample(nn.Module):
    """Halves the resolution by a 3x3 convolution of stride 2, with one pixel of padding on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution by copying each pixel, followed by a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stacks:
    """Builds the stacks of which encoder and decoder consist, for given widths.

    Args:
        widths: the number of channels at each resolution, from the image's resolution down.
        attention_factors: the downsampling factors at which attention follows each block.
        groups: the number of groups of the group norms.
        dropout: the probability with which a residual block drops a value.
    """

    def __init__(self, widths: list[int], attention_factors: list[int], groups: int, dropout: float) -> None:
        self.widths, self.attention_factors, self.groups, self.dropout = widths, attention_factors, groups, dropout

    def blocks(self, inputs: int, resolution: int, count: int) -> list[nn.Module]:
        """Residual blocks at a resolution, the first with `inputs` input channels, and attention where it belongs."""
        width, layers = self.widths[resolution], []
        for index in range(count):
            layers.append(ResBlock(width if index else inputs, width, self.groups, self.dropout))
            if 2**resolution in self.attention_factors:
                layers.append(Attention(width, self.groups))
        return layers

    def middle(self) -> list[nn.Module]:
        """A residual block, attention, and a residual block at the lowest resolution."""
        width = self.widths[-1]
        first, attention = ResBlock(width, width, self.groups, self.dropout), Attention(width, self.groups)
        return [first, attention, ResBlock(width, width, self.groups, self.dropout)]

    def end(self, width: int, channels: int) -> list[nn.Module]:
        """A group norm, SiLU, and a 3x3 convolution from `width` to `channels` channels."""
        return [nn.GroupNorm(self.groups, width, EPSILON), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]


class ResNetwork(Network):
    """VQGAN's encoder and decoder, with a 1x1 convolution to the width of the codes and one back.

    Args:
        image_shape: (C, H, W).
        outputs: the number of channels of the likelihood's parameters.
        codebook_dim: D, the width of z.
        channels: the width after the first convolution.
        multipliers: the width at each resolution in units of `channels`. The first resolution is the image's, and each
            further one is half the one before.
        residual_blocks: the number of residual blocks at each resolution. The decoder has one more.
        attention_factors: the downsampling factors at which attention follows each block. The papers name a resolution
            instead: resolution 16 of a 256x256 image is factor 16. A factor also fits images that are not square.
        z_channels: the width between the encoder and the 1x1 convolution.
        groups: the number of groups of the group norms.
        dropout: the probability with which a residual block drops a value.
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
        widths = [channels * multiplier for multiplier in multipliers]
        stacks = Stacks(widths, attention_factors, groups, dropout)

        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], channels, 3, padding=1)]
        inputs = channels
        for resolution, width in enumerate(widths):
            layers += stacks.blocks(inputs, resolution, residual_blocks)
            layers += [Downsample(width)] if resolution + 1 < len(widths) else []
            inputs = width
        self.encoder = nn.Sequential(*layers, *stacks.middle(), *stacks.end(widths[-1], z_channels))
        self.to_codes = nn.Conv2d(z_channels, codebook_dim, 1)

        layers = [nn.Conv2d(codebook_dim, z_channels, 1), nn.Conv2d(z_channels, widths[-1], 3, padding=1)]
        layers += stacks.middle()
        inputs = widths[-1]
        for resolution in reversed(range(len(widths))):
            layers += stacks.blocks(inputs, resolution, residual_blocks + 1)
            layers += [Upsample(widths[resolution])] if resolution else []
            inputs = widths[resolution]
        self.decoder = nn.Sequential(*layers, *stacks.end(widths[0], outputs))

    @staticmethod
    def grids_of(
        image_shape: tuple[int, int, int], *, multipliers: list[int], **others: object
    ) -> list[tuple[int, int]]:
        factor = 2 ** (len(multipliers) - 1)
        return [(image_shape[1] // factor, image_shape[2] // factor)]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.encoder(images)]

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        return self.to_codes(feature)

    @property
    def last_layer(self) -> nn.Module:
        return self.decoder[-1]

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        return self.decoder(quantized[0])
