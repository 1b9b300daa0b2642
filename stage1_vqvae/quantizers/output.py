"""The result of a quantizer's forward pass, and how often its codes were used."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tessera.distributed import sum_over_processes, world

TABLE = 2**18  # largest codebook whose uses are counted in a table; for larger ones, sorting the batch is cheaper


class QuantizerOutput(NamedTuple):
    """What a quantizer returns for vectors z (..., dim).

    Attributes:
        z_q: float32 (..., dim), the quantized vectors that the decoder receives.
        indices: int64 (..., depth), from 0 to codebook_size - 1.
        loss: scalar, the quantizer's term of the training loss.
        target: float32 (..., code_dim) without gradient, the vectors that were compared with the codes: z after
            projection, normalisation or bounding. None for a quantizer whose codes do not approximate vectors.
        code: float32 (..., code_dim) without gradient, the code of each target. Target minus code is the quantization
            error. None where `target` is None.
    """

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    target: torch.Tensor | None
    code: torch.Tensor | None


def used_counts(indices: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Counts how often codes were used on all processes together.

    Args:
        indices: int64 (M,), this process's codes. M must be the same on every process.

    Returns:
        float32 counts in no particular order. Codes that were not used may be left out.
    """
    if codebook_size <= TABLE:
        return sum_over_processes(torch.bincount(indices, minlength=codebook_size).float())
    rank, size = world()
    everywhere = indices.new_zeros(size, len(indices))
    everywhere[rank] = indices
    return sum_over_processes(everywhere).unique(return_counts=True)[1].float()


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of code usage: the number of codes, were all of them used equally often.

    Args:
        counts: float (..., K), how often each code was used.

    Returns:
        float (...), from 1 to K.
    """
    shares = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def planes(z_q: torch.Tensor) -> torch.Tensor:
    """Turns z_q (B, h, w, D) into a feature map (B, D, h, w) that always has the same memory layout.

    Convolutions round differently in another memory layout. Codes that were looked up would then not decode to exactly
    the image of the forward pass.
    """
    return z_q.contiguous().permute(0, 3, 1, 2)


def summed_loss(outputs: list[QuantizerOutput]) -> torch.Tensor:
    """The quantizers' loss, a scalar: the sum over levels."""
    with torch.autocast(outputs[0].loss.device.type, enabled=False):
        return torch.stack([output.loss for output in outputs]).sum()
