"""What decoding does for every token, made fast on a CPU: products with fixed weights, and one query's attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # positions by which a cache grows on a CPU
FEW = 4  # sequences at most for which, on a CPU, fp32 is no slower than bf16, and one call is all of attention


def _layout(weight: Tensor, rows: int) -> str:
    """Whose layout the weights of a product are put into: "onednn", "mkl", or "plain" for torch's own."""
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # torch has MKL's beside it only
    if weight.device.type != "cpu" or not onednn:
        return "plain"
    if weight.dtype == torch.bfloat16:
        return "onednn" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "plain"
    return "mkl" if weight.dtype == torch.float32 and rows > 1 and torch.backends.mkl.is_available() else "plain"


class Product:
    """x (rows, inputs) to W x + b, (rows, outputs), for weights that stay as they are while a batch is decoded.

    On a CPU the weights are laid out once as the fastest kernels want them, by operators that torch's compiler uses for
    layers of which the weights are frozen: oneDNN's in bf16, MKL's in fp32. Without gradients. In the plain `layout` x
    may be a single row without its dimension, (inputs,): a product of a matrix and a vector.

    Args:
        weight: (outputs, inputs); bias: (outputs,) or None.
        rows: how many there will be, most of the time.
        gelu: "none" or "tanh" to put that GELU behind it, by F.gelu's name of its approximation; None for none.
        dtype: of x and of the product; None: the weights' own.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        gelu: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = dtype or weight.dtype
        self.weight = weight.detach().to(dtype, memory_format=torch.contiguous_format)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.rows, self.layout, self.gelu = rows, _layout(self.weight, rows), gelu
        if weight.device.type == "cpu":
            self.weight = self.weight.contiguous()
        if self.layout == "onednn":
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        elif self.layout == "mkl":
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self.layout == "onednn":
            behind = ("none", [], "") if self.gelu is None else ("gelu", [], self.gelu)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *behind)
        y = self._plain(x)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)

    def onto(self, x: Tensor, other: Tensor) -> Tensor:
        """What the product gives (without GELU), added to `other`, of its shape."""
        if self.layout == "onednn":
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return self._plain(x).add_(other)

    def _plain(self, x: Tensor) -> Tensor:
        if x.ndim == 1:
            return torch.mv(self.weight, x) if self.bias is None else torch.addmv(self.bias, self.weight, x)
        if self.layout == "mkl" and len(x) == self.rows:
            return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return F.linear(x, self.weight, self.bias)


def _in_one_call(batch: int, dtype: torch.dtype) -> bool:
    """Whether `scaled_dot_product_attention` is faster on this CPU, for one query of each of so many sequences."""
    # Its kernel for bf16 has AMX or is slow.
    amx = dtype == torch.bfloat16 and getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return batch <= (4 * FEW if amx else FEW)


class KVCache:
    """The keys and values of some attention layers, for a batch of sequences that grow together.

    They are in one memory, so that all that a token reads and writes is sliced once for all layers. On a GPU, and for
    few sequences on a CPU, `scaled_dot_product_attention` asks; up to `FEW` in bf16 are kept in fp32 for it. For more,
    a product with the keys and one with the values are faster (benchmarks/decoding.py), if keys and values are
    contiguous: so the room for positions grows by blocks, what is there is laid out anew, and zeros fill the rest; in
    the same memory, as the first touch of new pages would cost more than it saves. In bf16 the scores are rounded to
    it.

    Several heads of queries may share one of keys and values, those next to one another the same.

    Args:
        layers: how many.
        shape: (B, heads, N, width of a head), of one layer's keys when all are there.
        like: the dtype and device of what comes and goes.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        batch, heads, self.limit, self.width = shape
        cpu = like.device.type == "cpu"
        self.by_blocks = cpu and not _in_one_call(batch, like.dtype)
        dtype = torch.promote_types(like.dtype, torch.float32) if cpu and batch <= FEW else like.dtype
        self.widened = dtype != like.dtype
        self.shape, self.parts, self.length, self.room = (batch, heads), 2 * layers, 0, 0
        self.memory = like.new_empty(self.parts * batch * heads * self.limit * self.width, dtype=dtype)
        self.missing = like.new_full((self.limit,), -torch.inf, dtype=dtype)  # added to scores: 0 where a position is
        self.kept = self._view(0)

    def _view(self, room: int) -> Tensor:
        """The memory as keys, values of each layer in turn: (2 · layers, B, heads, room, width of a head)."""
        shape = (self.parts, *self.shape, room, self.width)
        return self.memory[: math.prod(shape)].view(shape)

    def _lay_out(self, room: int) -> None:
        """Make room for so many positions."""
        old, self.kept, self.room = self.kept, self._view(room), room
        for part in reversed(range(self.parts)):  # to where later ones were
            before = old[part, :, :, : self.length].clone()
            self.kept[part, :, :, : self.length] = before
            if self.by_blocks:
                self.kept[part, :, :, self.length :] = 0
        flat = self.kept.flatten(1, 2)
        self.flat = [(flat[part].mT, flat[part + 1]) for part in range(0, self.parts, 2)]

    def open(self, count: int) -> None:
        """The next `count` positions begin, in every layer."""
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
        """A layer's keys and values of the positions that have begun, (B, heads, count, width of a head)."""
        self.slots[2 * layer].copy_(keys)
        self.slots[2 * layer + 1].copy_(values)

    def ask(self, layer: int, queries: Tensor) -> Tensor:
        """What the latest position's queries (B, heads of queries, 1, width of a head) find, (B, heads of queries ·
        width of a head)."""
        batch, heads = self.shape
        if not self.by_blocks:
            keys, values = self.seen[2 * layer], self.seen[2 * layer + 1]
            if queries.shape[1] != heads:  # those that share keys as if they were positions: none is masked
                queries = queries.reshape(batch, heads, -1, self.width)
            if not self.widened:
                return F.scaled_dot_product_attention(queries, keys, values).reshape(batch, -1)
            found = F.scaled_dot_product_attention(queries.to(keys.dtype), keys, values)
            return found.reshape(batch, -1).to(queries.dtype)
        keys, values = self.flat[layer]
        grouped = queries.reshape(batch * heads, -1, self.width)
        scores = torch.baddbmm(self.missing[: self.room], grouped, keys, alpha=self.width**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(batch, -1)

    def restart(self) -> None:
        """Begin other sequences."""
        self.length = 0
        self.missing.fill_(-torch.inf)
