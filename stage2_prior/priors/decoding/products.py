"""Matrix products with fixed weights, which decoding computes for every token, made fast on a CPU."""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 4  # on a CPU, up to so many sequences are decoded at least as fast in fp32 as in bf16
PROBE_TOLERANCE = {"mkl": 1e-4, "onednn": 0.05}  # largest error of a correct product of the probe, which is about 1


class Product:
    """The function x (rows, inputs) -> W x + b, (rows, outputs), for weights that do not change during decoding.

    On a CPU the weights are laid out once for the fastest kernels: oneDNN's for bf16, MKL's for fp32. These are private
    operators of torch, which its compiler uses for layers with frozen weights. They are tried once for each process;
    if one is missing or gives other numbers, torch's public operators are used. There are no gradients.

    In the layout "plain", x may also be a single row without its dimension, (inputs,).

    Args:
        weight: (outputs, inputs).
        bias: (outputs,) or None.
        rows: the usual number of rows of x. Other numbers work too.
        gelu: None, or the GELU that is applied to the product: "none" or "tanh", as `F.gelu` names its approximations.
        dtype: of x and of the product. None: the weights' own.
        layout: "plain", "mkl" or "onednn". None: the fastest that works.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        gelu: str | None = None,
        dtype: torch.dtype | None = None,
        layout: str | None = None,
    ) -> None:
        dtype = dtype or weight.dtype
        self.weight = weight.detach().to(dtype, memory_format=torch.contiguous_format)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.rows, self.gelu, self.layout = rows, gelu, layout or fastest_layout(self.weight, rows)
        if weight.device.type == "cpu":
            self.weight = self.weight.contiguous()
        if self.layout == "onednn":
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        elif self.layout == "mkl":
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """W x + b, with the GELU if there is one."""
        if self.layout == "onednn":
            behind = ("none", [], "") if self.gelu is None else ("gelu", [], self.gelu)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *behind)
        y = self._linear(x)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)

    def onto(self, x: Tensor, other: Tensor) -> Tensor:
        """W x + b + other, without the GELU. `other` has the shape of the product."""
        if self.layout == "onednn":
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return self._linear(x).add_(other)

    def _linear(self, x: Tensor) -> Tensor:
        if x.ndim == 1:
            return torch.mv(self.weight, x) if self.bias is None else torch.addmv(self.bias, self.weight, x)
        if self.layout == "mkl" and len(x) == self.rows:
            return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return F.linear(x, self.weight, self.bias)


def fastest_layout(weight: Tensor, rows: int) -> str:
    """The layout in which products of a weight with `rows` rows are fastest: "onednn", "mkl" or "plain"."""
    # torch has MKL's operators only where it has oneDNN.
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if weight.device.type != "cpu" or not onednn:
        return "plain"
    if weight.dtype == torch.bfloat16 and works("onednn"):
        return "onednn"
    # MKL has no advantage in the product of a matrix and a single vector.
    if weight.dtype == torch.float32 and rows > 1 and torch.backends.mkl.is_available() and works("mkl"):
        return "mkl"
    return "plain"


@cache
def works(layout: str) -> bool:
    """Whether torch's private operators of a layout exist and multiply correctly; tried once for each process.

    A processor without support for bf16 is an expected case. Any other failure is reported on stderr in one line.
    """
    try:
        if layout == "onednn" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        error = _probe(layout)
        reason = None if error <= PROBE_TOLERANCE[layout] else f"its products are wrong by {error:.2g}"
    except (AttributeError, RuntimeError, TypeError) as exception:
        reason = f"{type(exception).__name__}: {' '.join(str(exception).split())[:200]}"
    if reason:
        print(f"decoding uses torch's public operators, which are slower: {layout} fails ({reason})", file=sys.stderr)
    return reason is None


@torch.no_grad()
def _probe(layout: str) -> float:
    """The largest error of a small product in a layout, against float64."""
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 16, generator=random) / 4, torch.randn(24, generator=random)
    x, other = torch.randn(3, 16, generator=random), torch.randn(3, 24, generator=random)
    dtype = torch.bfloat16 if layout == "onednn" else torch.float32
    weight, bias, x, other = (tensor.to(dtype) for tensor in (weight, bias, x, other))
    expected = F.linear(x.double(), weight.double(), bias.double())
    plain, bent = (Product(weight, bias, len(x), gelu, layout=layout) for gelu in (None, "tanh"))
    pairs = [
        (plain(x), expected),
        (plain.onto(x, other), expected + other.double()),
        (bent(x), F.gelu(expected, approximate="tanh")),
    ]
    return max(((found.double() - wanted).abs().max() / wanted.abs().max()).item() for found, wanted in pairs)
