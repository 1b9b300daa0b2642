"""What every quantizer returns and reports."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tessera.distributed import sum_over_processes, world


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


TABLE = 2**18  # codes up to which a table of counts is cheaper than sorting a batch's


def used_counts(indices: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often codes were used, over the indices (M,) of all processes, as float32; unused ones may be left out."""
    if codebook_size <= TABLE:
        return sum_over_processes(torch.bincount(indices, minlength=codebook_size).float())
    rank, size = world()
    everywhere = indices.new_zeros(size, len(indices))
    everywhere[rank] = indices
    return sum_over_processes(everywhere).unique(return_counts=True)[1].float()


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of how often each code was used, (..., K) to (...): the size of an even codebook as varied."""
    shares = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()
