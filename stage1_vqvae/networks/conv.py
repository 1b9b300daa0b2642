"""The convolutional encoder and decoder of the first VQ-VAEs, for any number of levels.

One level is the model of van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4. Several levels
are arranged as in VQ-VAE-2 (Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", figure 2a):
the coarser level is quantized first and conditions the next finer one, and the decoder receives all of them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn

from stage1_vqvae.networks.base import Network
from tessera.parameters.sections import Count, Positive, Section


class Parameters(Section):
    """The section `conv` of params.yaml.

    `strides`: one factor for each level, finest level first; each is a power of two, at least 2. The first factor says
    by how much the finest grid is smaller than the image, in each direction. Each further factor says by how much a
    grid is smaller than the next finer one.
    """

    grows: ClassVar[bool] = True  # a refined decoder may have added blocks

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
        """The number by which the image's height and width must be divisible."""
        return math.prod(self.strides)

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.strides)


class Residual(nn.Module):
    """A residual block: ReLU, 3x3 convolution to `hidden` channels, ReLU, 1x1 convolution, added to the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


class Added(nn.Module):
    """A residual block that is added to a trained network. It is the identity at first. Keeps the input's shape."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.relu(self.wide(x)))


def residual_stack(channels: int, blocks: int, hidden: int) -> nn.Sequential:
    """Residual blocks, followed by a ReLU."""
    return nn.Sequential(*(Residual(channels, hidden) for _ in range(blocks)), nn.ReLU())


def downsample(inputs: int, stem: int, channels: int, factor: int, blocks: int, hidden: int) -> nn.Sequential:
    """An encoder: log2(factor) 4x4 convolutions of stride 2, a 3x3 convolution, and residual blocks.

    Args:
        inputs: channels of the input.
        stem: channels of the first convolution's output.
        channels: channels of all other outputs.
        factor: the downsampling factor, a power of two.
        blocks: the number of residual blocks.
        hidden: channels inside a residual block.
    """
    widths = [inputs, stem] + [channels] * (int(math.log2(factor)) - 1)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    head = nn.Conv2d(widths[-1], channels, 3, padding=1)
    return nn.Sequential(*layers, head, residual_stack(channels, blocks, hidden))


def upsample(
    inputs: int, stem: int, channels: int, outputs: int, factor: int, blocks: int, hidden: int
) -> nn.Sequential:
    """A decoder, the mirror image of `downsample`: a 3x3 convolution, residual blocks, and transposed convolutions.

    The transposed convolutions are 4x4 with stride 2. If there are several, the last one has `stem` input channels.

    Args:
        inputs: channels of the input.
        stem: channels of the last transposed convolution's input.
        channels: channels of all other inner feature maps.
        outputs: channels of the output.
        factor: the upsampling factor, a power of two.
        blocks: the number of residual blocks.
        hidden: channels inside a residual block.
    """
    halvings = int(math.log2(factor))
    widths = [channels] * max(1, halvings - 1) + [stem] * (halvings > 1) + [outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    head = nn.Conv2d(inputs, channels, 3, padding=1)
    return nn.Sequential(head, residual_stack(channels, blocks, hidden), *layers[:-1])


class ConvNetwork(Network):
    """Convolutional encoders, one per level, networks that decode a level for the next finer one, and a decoder.

    Args:
        image_shape: (C, H, W).
        outputs: the number of channels of the likelihood's parameters.
        codebook_dim: D, the width of z.
        strides: downsampling factors, finest level first. The encoders run one after the other, so that level i
            (coarsest first) is smaller than the image by the product of all factors but the last i.
        channels: the width of the networks.
        stem_channels: the width after each encoder's first convolution, and before the last transposed convolution of a
            decoder with at least two. The published notebook and rosinality's code use half of `channels`; the paper's
            CIFAR-10 model uses `channels`.
        residual_blocks: the number of residual blocks in each encoder and decoder.
        residual_channels: the width inside a residual block.
        shortcut: whether to add a linear layer from each level's patch of the image to its z, and one from the codes
            to the patches. With many bits per position, most of the code is a linear function of the patch, and a
            linear layer learns it sooner.
        added_blocks: the number of residual blocks of width `channels` at each resolution after the first of the
            decoder, the image's included. They are for a decoder that is trained on, since they begin as identities.
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
        added_blocks: int = 0,
    ) -> None:
        super().__init__()
        block = {"blocks": residual_blocks, "hidden": residual_channels}
        levels, self.channels = len(strides), channels
        inputs = [image_shape[0]] + [channels] * (levels - 1)
        self.encoders = nn.ModuleList(  # finest level first, which is the order in which they run
            downsample(i, stem_channels, channels, stride, **block) for i, stride in zip(inputs, strides, strict=True)
        )
        self.latents = nn.ModuleList(  # coarsest level first; all but the coarsest also receive a context
            nn.Conv2d(channels + codebook_dim * (level > 0), codebook_dim, 1) for level in range(levels)
        )
        self.contexts = nn.ModuleList(
            upsample(codebook_dim, stem_channels, channels, codebook_dim, stride, **block)
            for stride in reversed(strides[1:])
        )
        # Each level is brought to the finest grid by transposed convolutions, which can learn more than copies.
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
            for layer in self.shortcuts:  # orthogonal rows: no two elements of z begin with the same part of a patch
                nn.init.orthogonal_(layer.weight.view(codebook_dim, -1))
            self.decoder_shortcut = nn.ConvTranspose2d(codebook_dim * levels, outputs, strides[0], stride=strides[0])
            nn.init.zeros_(self.decoder_shortcut.weight)
        self.added = nn.ModuleDict()  # by the place in the decoder after which they come
        for place, layer in enumerate(self.decoder if added_blocks else ()):
            if isinstance(layer, nn.ConvTranspose2d):
                blocks = (Added(layer.out_channels, channels) for _ in range(added_blocks))
                self.added[str(min(place + 1, len(self.decoder) - 1))] = nn.Sequential(*blocks)  # after its ReLU

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], *, strides: list[int], **others: object) -> list[tuple[int, int]]:
        factors = [math.prod(strides[: len(strides) - level]) for level in range(len(strides))]
        return [(image_shape[1] // f, image_shape[2] // f) for f in factors]

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Turns images (B, C, H, W) into one feature map per level. With shortcuts, their z are its last D channels."""
        features, below = [], images
        for encoder in self.encoders:
            below = encoder(below)
            features.insert(0, below)
        if self.shortcuts:
            features = [torch.cat([f, s(images)], 1) for f, s in zip(features, self.shortcuts, strict=True)]
        return features

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        seen = feature[:, : self.channels]
        z = self.latents[level](seen if context is None else torch.cat([context, seen], 1))
        return z + feature[:, self.channels :] if self.shortcuts else z

    def context(self, level: int, z_q: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Decodes a level for the next finer one, to (B, D, h', w') on the finer grid. Coarser levels are left out."""
        return self.contexts[level](z_q)

    @property
    def last_layer(self) -> nn.Module:
        return self.decoder[-1]

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        z_q = torch.cat([lift(z_q) for lift, z_q in zip(self.lifts, quantized, strict=True)], 1)
        parameters = z_q
        for place, layer in enumerate(self.decoder):
            parameters = layer(parameters)
            if str(place) in self.added:
                parameters = self.added[str(place)](parameters)
        return parameters if self.decoder_shortcut is None else parameters + self.decoder_shortcut(z_q)
