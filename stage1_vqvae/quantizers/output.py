"""What every quantizer returns and reports."""

from __future__ import annotations

from typing import NamedTuple

import torch


class QuantizerOutput(NamedTuple):
    """What a quantizer makes of z (..., dim).

    z_q (..., dim) float32; indices (..., depth) int64; loss: the quantizer's term of the training loss; target and code
    (..., d), detached: what is quantized, as the codebook sees it (projected, normalised, bounded), and its code, whose
    difference is the quantization error. None where the codes stand for no vector.
    """

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    target: torch.Tensor | None
    code: torch.Tensor | None


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of how often each code was used, (..., K) to (...): the size of an even codebook as varied."""
    shares = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()
