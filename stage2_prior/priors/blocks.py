"""Our own transformer blocks, for priors that no architecture of `transformers` fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Recomputable
from stage2_prior.priors.decoding.engine import Decoder, Layer, decoding_dtype, layer_norm, plain_layer
from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.heads import joined

CACHED_ROWS = 2048  # positions in fp32 whose layer outputs stay in a CPU's caches


class Sizes(TypedDict):
    """The arguments of `Blocks` that parameters give, see `AttentionParams`."""

    layers: int
    width: int
    heads: int
    dropout: float


class Block(Recomputable):
    """A transformer block: norm, attention, add; norm, a GELU network of four times the width, add.

    `causal`: whether a position attends only to itself and to those before it.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences: (B, n, width) -> (B, n, width)."""
        x = x + self.dropout(self.out(self._attend(self.qkv(self.before_attention(x)))))
        return x + self.dropout(self.mlp(self.before_mlp(x)))

    def _attend(self, qkv: Tensor) -> Tensor:
        """The attention (B, n, width), from queries, keys and values side by side, (B, n, 3 width)."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attention(q, k, v).transpose(1, 2).flatten(2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention of whole sequences, from queries, keys and values (B, heads, n, width of a head) each."""
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)

    def decoding(self, rows: int, dtype: torch.dtype) -> Layer:
        """The block as a function in a dtype, without dropout and gradients.

        `rows`: number of positions of all sequences together.
        """

        def product(layer: nn.Linear, gelu: str | None = None) -> Product:
            return Product(layer.weight, layer.bias, rows, gelu, dtype)

        norms = layer_norm(self.before_attention, dtype), layer_norm(self.before_mlp, dtype)
        attention = product(self.qkv), product(self.out)
        return plain_layer(norms, attention, (product(self.mlp[0], self.mlp[1].approximate), product(self.mlp[2])))


class Blocks(nn.Module):
    """Blocks one after another, then a norm.

    `block`: what makes a block, with the arguments of `Block`.

    Source: Vaswani et al. 2017, "Attention Is All You Need"; norms first as in Radford et al. 2019 (GPT-2).
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        dropout: float,
        *,
        causal: bool,
        block: Callable[..., Block] = Block,
    ) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.layers = nn.ModuleList(block(width, heads, dropout, causal=causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for layer in self.layers:  # smaller for more layers, so that the sum of their outputs starts at the same size
            for last in (layer.out, layer.mlp[-1]):
                nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences: (B, n, width) -> (B, n, width)."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def frozen(self, batch: int, length: int) -> Callable[[Tensor], Tensor]:
        """`forward` as a function without dropout and gradients, for `batch` sequences of `length` tokens.

        On a CPU a few sequences go through all layers before the next few, so that layer outputs stay in its caches.
        """
        several, weight = batch, self.norm.weight
        if weight.device.type == "cpu":
            several = max(1, min(batch, CACHED_ROWS * 4 // weight.dtype.itemsize // length))
        layers = [layer.decoding(several * length, weight.dtype) for layer in self.layers]

        def run(x: Tensor) -> Tensor:
            shape = x.shape[:2]
            y = x.flatten(0, 1)
            for block, layer in zip(self.layers, layers, strict=True):
                y = layer(y, lambda qkv, block=block: block._attend(qkv.unflatten(0, shape)).flatten(0, 1))
            return self.norm(y).unflatten(0, shape)

        return lambda x: joined([run(part) for part in x.split(several)], 0)

    def decoder(self, batch: int, length: int) -> Decoder:
        """A decoder of these blocks, which must be causal, for `batch` sequences of at most `length` tokens."""
        shape = (batch, self.heads, length, self.width // self.heads)
        dtype = decoding_dtype(self, batch)
        layers = [layer.decoding(batch, dtype) for layer in self.layers]
        return Decoder(layers, layer_norm(self.norm, dtype), shape, self.norm.weight.detach().to(dtype))
