"""Decodes a transformer scale by scale: many positions at once, which see each other and all positions before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.priors.decoding.engine import layer_norm

if TYPE_CHECKING:
    from stage2_prior.priors.blocks import Blocks


class ScaleDecoder:
    """The layers of a transformer, with the keys and values of a batch of sequences, whose scales grow it in turn.

    Shapes depend on the batch and on the scale alone, never on the codes.

    Args:
        blocks: the transformer.
        batch: B, the number of sequences.
        length: positions of a sequence.
        rows: the usual number of positions of all sequences in one call.
    """

    def __init__(self, blocks: Blocks, batch: int, length: int, rows: int) -> None:
        weight = blocks.norm.weight
        self.heads, self.dtype, self.length = blocks.heads, weight.dtype, 0
        self.layers = [block.decoding(rows, self.dtype) for block in blocks.layers]
        self.finish = layer_norm(blocks.norm, self.dtype)
        shape = (len(self.layers), 2, batch, blocks.heads, length, blocks.width // blocks.heads)
        self.memory = torch.empty(shape, dtype=self.dtype, device=weight.device)

    @torch.no_grad()
    def extend(self, x: Tensor) -> Tensor:
        """Hidden states of the next n positions, (B, n, width), from their inputs (B, n, width)."""
        batch, n, _ = x.shape
        begin, self.length = self.length, self.length + n
        y = x.to(self.dtype).flatten(0, 1)
        for number, layer in enumerate(self.layers):
            y = layer(y, lambda qkv, number=number: self._attend(qkv, number, batch, begin))
        return self.finish(y).unflatten(0, (batch, n))

    def _attend(self, qkv: Tensor, layer: int, batch: int, begin: int) -> Tensor:
        """The attention of a layer at the new positions, (rows, width), from queries, keys and values (rows, ·)."""
        q, *new = qkv.view(batch, -1, 3, self.heads, self.memory.shape[-1]).permute(2, 0, 3, 1, 4)
        seen = self.memory[layer, :, :, :, : self.length]
        for part, values in zip(seen, new, strict=True):
            part[:, :, begin:].copy_(values)
        return F.scaled_dot_product_attention(q, seen[0], seen[1]).transpose(1, 2).reshape(len(qkv), -1)
