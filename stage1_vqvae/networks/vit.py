"""ViT-VQGAN's encoder and decoder: transformers over patches. One level.

Source: Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN", section 3.1. As in published code, and
unlike the paper, the pixels of a patch come from one linear layer instead of two with a tanh between them. Positions
are fixed sines and cosines instead of learned, so that they suit any rectangle without training.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from stage1_vqvae.networks.base import Network
from tessera.parameters.sections import LARGEST, Dropout, Misfit, Positive, Section


class Parameters(Section):
    """The section `vit` of params.yaml. A patch has `patch` pixels a side."""

    patch: Positive
    width: Annotated[int, Field(ge=4, le=LARGEST, multiple_of=4)]
    layers: Positive
    heads: Positive
    mlp_ratio: Positive
    dropout: Dropout

    levels: ClassVar[int] = 1

    @property
    def factor(self) -> int:
        """The number by which the image's height and width must be divisible."""
        return self.patch

    def fits_together(self) -> None:
        if self.width % self.heads:
            raise Misfit(f"width {self.width} must be a multiple of heads {self.heads}")


def sine_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """Fixed encodings of the positions of a grid, as sines and cosines at several frequencies.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", after Vaswani et al. 2017, "Attention Is
    All You Need".

    Returns:
        float32 (height · width, channels), row by row. The first half of the channels encodes the row, the second half
        the column.
    """
    rates = 10_000.0 ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = (torch.arange(size)[:, None] * rates for size in (height, width))
    rows, columns = (torch.cat([angle.sin(), angle.cos()], 1) for angle in (rows, columns))
    rows, columns = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat([rows, columns], 2).reshape(height * width, channels)


class Block(nn.Module):
    """A transformer layer: x + attention(norm(x)), then x + perceptron(norm(x)), for x of shape (B, N, width)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        x = x + self.dropout(self.out(h))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class ViTNetwork(Network):
    """A transformer over patches with a linear layer to the width of the codes, and the mirror image as the decoder.

    Args:
        image_shape: (C, H, W).
        outputs: the number of channels of the likelihood's parameters.
        codebook_dim: D, the width of z.
        patch: the side of a patch in pixels. Each patch is one position of the code grid.
        width: the width of both transformers.
        layers: the number of layers of each transformer.
        heads: the number of attention heads.
        mlp_ratio: the width inside the perceptrons in units of `width`.
        dropout: the probability with which a value is dropped before it is added to a block's input.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        codebook_dim: int,
        *,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
    ) -> None:
        super().__init__()
        (grid,) = self.grids_of(image_shape, patch=patch)
        self.register_buffer("positions", sine_positions(*grid, width), persistent=False)

        def transformer() -> nn.Sequential:
            blocks = (Block(width, heads, mlp_ratio, dropout) for _ in range(layers))
            return nn.Sequential(*blocks, nn.LayerNorm(width))

        self.embed = nn.Conv2d(image_shape[0], width, patch, stride=patch)
        self.encoder, self.to_codes = transformer(), nn.Conv2d(width, codebook_dim, 1)
        self.from_codes, self.decoder = nn.Conv2d(codebook_dim, width, 1), transformer()
        self.unembed = nn.ConvTranspose2d(width, outputs, patch, stride=patch)
        for layer, inputs in ((self.embed, image_shape[0] * patch**2), (self.unembed, width)):
            nn.init.trunc_normal_(layer.weight, std=1 / math.sqrt(inputs))  # as for a linear layer on a patch

    @staticmethod
    def grids_of(image_shape: tuple[int, int, int], *, patch: int, **others: object) -> list[tuple[int, int]]:
        return [(image_shape[1] // patch, image_shape[2] // patch)]

    def _run(self, transformer: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        """Runs a transformer over the positions of a feature map (B, width, h, w), to one of the same shape."""
        tokens = transformer(x.flatten(2).transpose(1, 2) + self.positions)
        return tokens.transpose(1, 2).view_as(x)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self._run(self.encoder, self.embed(images))]

    def latent(self, level: int, feature: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        return self.to_codes(feature)

    @property
    def last_layer(self) -> nn.Module:
        return self.unembed

    def decode(self, quantized: list[torch.Tensor]) -> torch.Tensor:
        return self.unembed(self._run(self.decoder, self.from_codes(quantized[0])))
