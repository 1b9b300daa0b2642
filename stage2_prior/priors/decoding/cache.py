"""The keys and values that attention layers keep while sequences are decoded, and the attention of the latest token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.priors.decoding.products import FEW

BLOCK = 32  # positions by which the room for keys and values grows on a CPU


def _in_one_call(batch: int, dtype: torch.dtype) -> bool:
    """Whether, on this CPU, `scaled_dot_product_attention` is faster than two products, for one query a sequence."""
    # Its kernel for bf16 is fast only with AMX. The name is private, and a torch without it has no such kernel.
    amx = dtype == torch.bfloat16 and getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return batch <= (4 * FEW if amx else FEW)


class KVCache:
    """The keys and values of some attention layers, for a batch of sequences that grow together.

    All layers share one memory, so that what a token reads and writes is sliced once for all of them.

    Attention is computed in one of two ways. On a GPU, and for few sequences on a CPU, it is a call of
    `scaled_dot_product_attention`. For more sequences on a CPU, a product with the keys and one with the values are
    faster (benchmarks/decoding.py), if keys and values are contiguous. The room for positions then grows by blocks of
    `BLOCK`: what is there is moved within the same memory, because touching new pages would cost more than the move,
    and zeros fill the rest. In bf16 the scores are rounded to bf16.

    Up to `FEW` sequences in bf16 are kept in fp32, which is no slower.

    Several heads of queries may share one head of keys and values. Heads that share are neighbours.

    Args:
        layers: number of attention layers.
        shape: (B, heads of keys, N, width of a head), of one layer's keys when all positions are there.
        like: a tensor of the dtype and device of keys, values and queries.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        batch, heads, self.limit, self.width = shape
        cpu = like.device.type == "cpu"
        self.by_blocks = cpu and not _in_one_call(batch, like.dtype)
        dtype = torch.promote_types(like.dtype, torch.float32) if cpu and batch <= FEW else like.dtype
        self.widened = dtype != like.dtype
        self.shape, self.parts, self.length, self.room = (batch, heads), 2 * layers, 0, 0
        self.memory = like.new_empty(self.parts * batch * heads * self.limit * self.width, dtype=dtype)
        # Added to the scores: 0 for a position that is there, -inf for one that is not.
        self.missing = like.new_full((self.limit,), -torch.inf, dtype=dtype)
        self.kept = self._view(0)

    def _view(self, room: int) -> Tensor:
        """The memory as (2 · layers, B, heads, room, width of a head): keys and values of each layer in turn."""
        shape = (self.parts, *self.shape, room, self.width)
        return self.memory[: math.prod(shape)].view(shape)

    def _lay_out(self, room: int) -> None:
        """Makes room for so many positions."""
        old, self.kept, self.room = self.kept, self._view(room), room
        for part in reversed(range(self.parts)):  # the last first: each moves to where later parts were
            before = old[part, :, :, : self.length].clone()
            self.kept[part, :, :, : self.length] = before
            if self.by_blocks:
                self.kept[part, :, :, self.length :] = 0
        flat = self.kept.flatten(1, 2)
        self.flat = [(flat[part].mT, flat[part + 1]) for part in range(0, self.parts, 2)]

    def open(self, count: int) -> None:
        """Begins the next `count` positions in every layer."""
        first, last = self.length, self.length + count
        if last > self.room:
            self._lay_out(min(-(-last // BLOCK) * BLOCK, self.limit) if self.by_blocks else self.limit)
        self.length = last
        self.slots = self.kept.narrow(3, first, count).unbind()
        if self.by_blocks:
            self.missing[first:last] = 0
        else:
            self.seen = self.kept.narrow(3, 0, last).unbind()

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Stores one layer's keys and values of the positions just begun, (B, heads, count, width of a head)."""
        self.slots[2 * layer].copy_(keys)
        self.slots[2 * layer + 1].copy_(values)

    def ask(self, layer: int, queries: Tensor) -> Tensor:
        """The attention of the latest position over all positions so far.

        Args:
            queries: (B, heads of queries, 1, width of a head).

        Returns:
            (B, heads of queries · width of a head).
        """
        batch, heads = self.shape
        if not self.by_blocks:
            keys, values = self.seen[2 * layer], self.seen[2 * layer + 1]
            if queries.shape[1] != heads:  # heads that share keys become positions of one head, as no key is masked
                queries = queries.reshape(batch, heads, -1, self.width)
            if not self.widened:
                return F.scaled_dot_product_attention(queries, keys, values).reshape(batch, -1)
            found = F.scaled_dot_product_attention(queries.to(keys.dtype), keys, values)
            return found.reshape(batch, -1).to(queries.dtype)
        keys, values = self.flat[layer]
        grouped = queries.reshape(batch * heads, -1, self.width)
        scores = torch.baddbmm(self.missing[: self.room], grouped, keys, alpha=self.width**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(batch, -1)

    def ask_some(self, layer: int, queries: Tensor, seen: Tensor) -> Tensor:
        """The attention of the latest n positions, each over the positions that it may see.

        Args:
            queries: (B, heads of queries, n, width of a head).
            seen: bool (n, positions so far).

        Returns:
            (B, heads of queries, n, width of a head).
        """
        keys, values = (self.kept[2 * layer + i].narrow(2, 0, self.length) for i in (0, 1))
        shared = queries.shape[1] != self.shape[1]
        found = F.scaled_dot_product_attention(queries.to(keys.dtype), keys, values, attn_mask=seen, enable_gqa=shared)
        return found.to(queries.dtype)

    def forget(self, count: int) -> None:
        """Takes the latest `count` positions back in every layer."""
        self.length -= count
        self.missing[self.length : self.length + count] = -torch.inf

    def restart(self) -> None:
        """Begins other sequences in the same memory."""
        self.length = 0
        self.missing.fill_(-torch.inf)
