"""Decodes a causal transformer token by token: a few operations for each layer, and a key-value cache.

Our own transformer blocks, GPT-2 and Llama are described to it as functions of a layer. Hidden states equal those of
the forward pass up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.decoding.cache import KVCache
from stage2_prior.priors.decoding.products import FEW, Product

# In all of these a single row may come without its dimension: (width,) in place of (1, width).
Attend = Callable[[Tensor], Tensor]  # queries, keys and values of all heads, side by side, (rows, ·) -> (rows, width)
Layer = Callable[[Tensor, Attend], Tensor]  # x (rows, width) and the layer's attention -> (rows, width)
Norm = Callable[[Tensor], Tensor]  # (rows, width) -> (rows, width)

CACHED_WEIGHTS = 2**24  # 64 MB in fp32, which the caches of a server's processor hold

# `split` calls `split_with_sizes` after a detour in Python. A torch without the latter has the former.
_split = getattr(Tensor, "split_with_sizes", Tensor.split)


class Decoder:
    """The layers of a causal transformer, with the keys and values of a batch of sequences.

    Args:
        layers: each layer as a function.
        finish: the norm after the last layer.
        shape: (B, heads of keys, N, width of a head), of one layer's keys.
        like: a tensor of the dtype and device in which the layers compute.
        turns: rotary embeddings, complex (N, width of a head / 2). None: the model has none.
        places: embeddings of positions (N, width), which are added to the input. None: the model has none.
    """

    def __init__(
        self,
        layers: list[Layer],
        finish: Norm,
        shape: tuple[int, int, int, int],
        like: Tensor,
        turns: Tensor | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.layers, self.finish, self.turns, self.places = layers, finish, turns, places
        self.heads, self.width, self.dtype = shape[1], shape[3], like.dtype
        # A single row of plain products needs fewer operations without its dimension.
        self.vector = shape[0] == 1 and like.device.type == "cpu" and like.dtype.itemsize >= 4
        self.cache = KVCache(len(layers), shape, like)

    @property
    def length(self) -> int:
        """The number of positions so far."""
        return self.cache.length

    def extend(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Hidden states of the next n positions, (B, n, width) in the layers' dtype, from their embeddings.

        Args:
            x: (B, n, width).
            seen: bool (n, positions so far and the next n), the positions that each of the next ones attends to. None:
                itself and all before it; n may then be above 1 in the first call only.
        """
        batch, n, _ = x.shape
        new = slice(self.cache.length, self.cache.length + n)
        turns = None if self.turns is None else self.turns[new]
        self.cache.open(n)
        x = x.to(self.dtype)
        if self.places is not None:
            x = x + self.places[new]
        x = x[0, 0] if self.vector and n == 1 else x.flatten(0, 1)
        for i, layer in enumerate(self.layers):
            x = layer(x, lambda qkv, i=i: self._attend(qkv, i, batch, n, turns, seen))
        return self.finish(x).view(batch, n, -1)

    def _attend(self, qkv: Tensor, layer: int, batch: int, n: int, turns: Tensor | None, seen: Tensor | None) -> Tensor:
        """The attention of a layer at the n new positions, (rows, width), from queries, keys and values (rows, ·)."""
        rows = qkv.shape[:-1]
        qkv = qkv.view(batch, -1, 1, self.width) if n == 1 else qkv.view(batch, n, -1, self.width).transpose(1, 2)
        heads = self.heads
        queries = qkv.shape[1] - 2 * heads
        if turns is None:
            q, k, v = _split(qkv, (queries, heads, heads), 1)
        else:
            qk, v = _split(qkv, (queries + heads, heads), 1)
            q, k = _split(_turn(qk, turns), (queries, heads), 1)
        self.cache.put(layer, k, v)
        if n == 1 and seen is None:
            return self.cache.ask(layer, q).view(*rows, -1)
        if seen is None:
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=queries > heads)
        else:
            found = self.cache.ask_some(layer, q, seen)
        return found.transpose(1, 2).reshape(*rows, -1)

    def forget(self, count: int) -> None:
        """Takes the latest `count` positions back."""
        self.cache.forget(count)

    def restart(self) -> None:
        """Begins other sequences with the same layers."""
        self.cache.restart()


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Applies rotary embeddings to x (B, heads, n, width of a head), in which each pair of neighbours is one complex
    number."""
    dtype, wide = x.dtype, turns.real.dtype
    if dtype == wide:
        return (x.view(turns.dtype) * turns).view(dtype)
    return (x.to(wide).view(turns.dtype) * turns).view(wide).to(dtype)  # bf16 has no complex numbers


def plain_layer(
    norms: tuple[Norm, Norm],
    attention: tuple[Product, Product],
    mlp: tuple[Product, Product],
    act: Callable[[Tensor], Tensor] = lambda x: x,
) -> Layer:
    """A transformer layer with norms first: norm, attention, add; norm, two products, add.

    Args:
        attention: the product that gives queries, keys and values, and the one after the attention.
        mlp: the two products of the network.
        act: the activation between them, where the first product does not apply it itself.
    """

    def run(x: Tensor, attend: Attend) -> Tensor:
        x = attention[1].onto(attend(attention[0](norms[0](x))), x)
        return mlp[1].onto(act(mlp[0](norms[1](x))), x)

    return run


def layer_norm(module: nn.LayerNorm, dtype: torch.dtype) -> Norm:
    """A layer norm as a function, in a dtype."""
    weight, bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
    shape, eps = module.normalized_shape, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def decoding_dtype(model: nn.Module, batch: int) -> torch.dtype:
    """The dtype in which to decode `batch` sequences: the weights' own, or fp32 for few sequences in bf16 on a CPU.

    A product of a matrix and few vectors takes the time of reading the matrix, and no kernel reads bf16 as fast as fp32
    while the processor's caches hold it. The weights keep the values that bf16 has rounded them to.
    """
    weight, size = next(model.parameters()), sum(p.numel() for p in model.parameters())
    narrow = weight.device.type == "cpu" and weight.dtype.itemsize < 4
    return torch.float32 if batch <= FEW and narrow and size <= CACHED_WEIGHTS else weight.dtype
