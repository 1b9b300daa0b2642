"""The convolutional encoder and decoder of van den Oord et al. 2017 (section 4), written for any number of levels.

One level is the 2017 model. Several are VQ-VAE-2's arrangement (Razavi et al. 2019, figure 2a): each coarser level is
quantized first and conditions the next finer one, and the decoder sees all of them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn

from stage1_vqvae.networks.base import Network
from tessera.parameters.sections import Count, Positive, Section


class Parameters(Section):
    """Parameters of `conv`; `strides` lists downsampling factors, finest level first."""

    strides: Annotated[tuple[int, ...], Field(min_length=1)]
    channels: Positive
    stem_channels: Positive
    residual_blocks: Count
    residual_channels: Positive
    shortcut: bool

    @field_validator("strides")
    @classmethod
    def powers_of_two(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        if any(s < 2 or s & (s - 1) for s in strides):
            raise ValueError(f"every stride must be a power of two, at least 2, got {list(strides)}")
        return strides

    @property
    def factor(self) -> int:
        """The image's height and width must be multiples of this."""
        return math.prod(self.strides)

    @property
    def levels(self) -> int:
        return len(self.strides)


class Residual(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, added to the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


def residual_stack(channels: int, blocks: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels, hidden) for _ in range(blocks)), nn.ReLU())


def downsample(inputs: int, stem: int, channels: int, factor: int, blocks: int, hidden: int) -> nn.Sequential:
    """4x4 convolutions of stride 2, log2(factor) of them, the first at the stem's width; 3x3; residual stack."""
    widths = [inputs, stem] + [channels] * (int(math.log2(factor)) - 1)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    head = nn.Conv2d(widths[-1], channels, 3, padding=1)
    return nn.Sequential(*layers, head, residual_stack(channels, blocks, hidden))


def upsample(
    inputs: int, stem: int, channels: int, outputs: int, factor: int, blocks: int, hidden: int
) -> nn.Sequential:
    """The mirror image: 3x3, residual stack, transposed 4x4 convolutions of stride 2, the last from the stem."""
    halvings = int(math.log2(factor))
    widths = [channels] * max(1, halvings - 1) + [stem] * (halvings > 1) + [outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    head = nn.Conv2d(inputs, channels, 3, padding=1)
    return nn.Sequential(head, residual_stack(channels, blocks, hidden), *layers[:-1])


class ConvNetwork(Network):
    """Encoders, latent projections, conditioning decoders and the image decoder.

    Args:
        image_shape: (C, H, W).
        outputs: channels of the likelihood's parameters.
        codebook_dim: D, width of z.
        strides: downsampling factors, finest level first; level i (coarsest first) lies behind the product of all but
            its i last.
        channels: width; stem_channels: that of every encoder's first convolution, and of its mirror image where there
            are two and more (the notebooks and rosinality: half; the paper's CIFAR-10 model: the same).
        residual_blocks, residual_channels: of each residual stack, and of their 3x3.
        shortcut: a linear layer from each level's patch of the image to its z, and one from the codes to the patches,
            beside encoders and decoder. With many bits a position, most of the code is linear, and learned sooner so.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        codebook_dim: int,
        *,
        strides: list[int],
        channels: int,
        stem_channels: int,
        residual_blocks: int,
        residual_channels: int,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        block = {"blocks": residual_blocks, "hidden": residual_channels}
        levels, self.channels = len(strides), channels
        inputs = [image_shape[0]] + [channels] * (levels - 1)
        self.encoders = nn.ModuleList(  # finest first, as they run
            downsample(i, stem_channels, channels, stride, **block) for i, stride in zip(inputs, strides, strict=True)
        )
        self.latents = nn.ModuleList(  # coarsest first; every finer one also sees the coarser level decoded
            nn.Conv2d(channels + codebook_dim * (level > 0), codebook_dim, 1) for level in range(levels)
        )
        self.contexts = nn.ModuleList(
            upsample(codebook_dim, stem_channels, channels, codebook_dim, stride, **block)
            for stride in reversed(strides[1:])
        )
        # To the finest grid, by transposed convolutions that learn what nearest-neighbour copies could not.
        self.lifts = nn.ModuleList(
            nn.Sequential(
                *(nn.ConvTranspose2d(codebook_dim, codebook_dim, 4, stride=2, padding=1) for _ in range(halvings))
            )
            for halvings in [int(math.log2(math.prod(strides[1 : levels - level]))) for level in range(levels)]
        )
        self.decoder = upsample(codebook_dim * levels, stem_channels, channels, outputs, strides[0], **block)
        self.shortcuts, self.decoder_shortcut = nn.ModuleList(), None
        if shortcut:
            factors = [math.prod(strides[: levels - level]) for level in range(levels)]
            self.shortcuts = nn.ModuleList(nn.Conv2d(image_shape[0], codebook_dim, f, stride=f) for f in factors)
            for layer in self.shortcuts:  # a patch's directions, none twice
                nn.init.orthogonal_(layer.weight.view(codebook_dim, -1))
            self.decoder_shortcut = nn.ConvTranspose2d(codebook_dim * levels, outputs, strides[0], stride=strides[0])
            nn.init.zeros_(self.decoder_shortcut.weight)
        self.grids = self.grids_of(image_shape, strides=strides)

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], *, strides: list[int], **others: object) -> list[tuple[int, int]]:
        """Each level's (height, width), coarsest first."""
        factors = [math.prod(strides[: len(strides) - level]) for level in range(len(strides))]
        return [(image_shape[1] // f, image_shape[2] // f) for f in factors]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, C, H, W) to a feature map a level, coarsest first; of a shortcut, its z are the last channels."""
        features, below = [], images
        for encoder in self.encoders:
            below = encoder(below)
            features.insert(0, below)
        if self.shortcuts:
            features = [torch.cat([f, s(images)], 1) for f, s in zip(features, self.shortcuts, strict=True)]
        return features

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """z (B, D, h, w) of a level from its feature map and, but for the coarsest, the coarser level's context."""
        seen = feature[:, : self.channels]
        z = self.latents[level](seen if context is None else torch.cat([context, seen], 1))
        return z + feature[:, self.channels :] if self.shortcuts else z

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor | None:
        """What the next finer level is conditioned on; None after the finest."""
        return self.contexts[level](z_q) if level < len(self.contexts) else None

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        """z_q of all levels, coarsest first, to likelihood parameters (B, outputs, H, W)."""
        z_q = torch.cat([lift(z_q) for lift, z_q in zip(self.lifts, quantized, strict=True)], 1)
        parameters = self.decoder(z_q)
        return parameters if self.decoder_shortcut is None else parameters + self.decoder_shortcut(z_q)
