"""What decoding does for every token, made fast on a CPU: products with fixed weights, and one query's attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # positions by which a cache grows on a CPU


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
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, gelu: str | None = None) -> None:
        self.weight, self.bias, self.gelu = weight.detach(), None if bias is None else bias.detach(), gelu
        self.rows, self.layout = rows, _layout(weight, rows)
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
        if self.layout == "mkl" and len(x) == self.rows:
            return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        if x.ndim > 1:
            return F.linear(x, self.weight, self.bias)
        return torch.mv(self.weight, x) if self.bias is None else torch.addmv(self.bias, self.weight, x)


class KVCache:
    """The keys and values of one attention layer, for a batch of sequences that grow together.

    On a CPU, for one query a sequence, a product with the keys and one with the values are faster than
    `scaled_dot_product_attention`, above all in bf16, if keys and values are contiguous (benchmarks/decoding.py). So
    the room for positions grows by blocks, what is there is laid out anew, and zeros fill the rest; in the same memory,
    as the first touch of new pages would cost more than it saves. In bf16 the scores are rounded to it.

    A single sequence goes through `scaled_dot_product_attention`, in fp32 if it is in bf16.

    Several heads of queries may share one of keys and values, those next to one another the same.

    Args:
        shape: (B, heads, N, width of a head), of the keys when all are there.
        like: the dtype and device of what comes and goes.
    """

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        batch, heads, self.limit, self.width = shape
        self.by_blocks = like.device.type == "cpu" and batch > 1
        self.shape, self.length, self.room = (batch, heads), 0, 0
        single = like.device.type == "cpu" and batch == 1
        dtype = torch.promote_types(like.dtype, torch.float32) if single else like.dtype
        self.memory = [like.new_empty(batch * heads * self.limit * self.width, dtype=dtype) for _ in range(2)]
        self._lay_out(0)

    def _lay_out(self, room: int) -> None:
        """Make room for so many positions: keys and values (B, heads, room, width of a head)."""
        before = [part[:, :, : self.length].clone() for part in (self.keys, self.values)] if self.length else []
        rows, self.room = self.shape[0] * self.shape[1], room
        kept = [memory[: rows * room * self.width].view(rows, room, self.width) for memory in self.memory]
        self.flat = kept[0].mT, kept[1]
        self.keys, self.values = (part.unflatten(0, self.shape) for part in kept)
        for part, old in zip((self.keys, self.values), before, strict=False):
            part[:, :, : self.length] = old
        for part in (self.keys, self.values):
            part[:, :, self.length :] = 0

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values of the next n positions, (B, heads, n, width of a head)."""
        n = keys.shape[2]
        if self.length + n > self.room:
            blocks = -(-(self.length + n) // BLOCK) * BLOCK
            self._lay_out(min(blocks, self.limit) if self.by_blocks else self.limit)
        self.keys.narrow(2, self.length, n).copy_(keys)
        self.values.narrow(2, self.length, n).copy_(values)
        self.length += n

    def ask(self, queries: Tensor) -> Tensor:
        """What the latest position's queries (B, heads of queries, 1, width of a head) find, (B, heads of queries ·
        width of a head)."""
        if not self.by_blocks:
            keys, values = (part.narrow(2, 0, self.length) for part in (self.keys, self.values))
            # Those that share keys as if they were positions: none is masked.
            grouped = queries.to(keys.dtype).reshape(*self.shape, -1, self.width)
            return F.scaled_dot_product_attention(grouped, keys, values).flatten(1).to(queries.dtype)
        keys, values = self.flat
        scores = torch.bmm((queries * self.width**-0.5).reshape(len(keys), -1, self.width), keys)
        if self.length < self.room:
            scores[:, :, self.length :] = -torch.inf
        return torch.bmm(scores.softmax(-1), values).view(len(queries), -1)
