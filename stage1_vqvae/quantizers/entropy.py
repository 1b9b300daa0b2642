"""Entropy of soft assignments to codes, without the matrix of assignments.

Two figures of merit for a codebook (Yu et al. 2023, MAGVIT-v2, equation 5): each vector should be sure of its code (low
mean entropy), and all codes should be used (high entropy of the mean assignment).
"""

from __future__ import annotations

import torch

from tessera.distributed import sum_over_processes, world

BLOCK = 2**22  # logits held at a time


def _softmax(
    vectors: torch.Tensor, codebook: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and p (rows, K) of softmax(scale (v·c + bias))."""
    scores = vectors @ codebook.t()
    log_p = ((scores if bias is None else scores + bias) * scale).log_softmax(1)
    return log_p, log_p.exp()


class _Assignments(torch.autograd.Function):
    """Mean entropy of the vectors' assignments, and their mean (K,), in blocks of rows; backward computes them anew."""

    @staticmethod
    def forward(ctx, vectors, codebook, scale, bias):
        rows = max(1, BLOCK // len(codebook))
        entropy, mean = vectors.new_zeros(()), vectors.new_zeros(len(codebook))
        for block in vectors.split(rows):
            log_p, p = _softmax(block, codebook, scale, bias)
            entropy -= (log_p * p).sum()
            mean += p.sum(0)
        ctx.save_for_backward(vectors, codebook, bias)
        ctx.scale, ctx.rows = scale, rows
        return entropy / len(vectors), mean / len(vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_entropy, of_mean):
        vectors, codebook, bias = ctx.saved_tensors
        of_vectors, of_codebook = torch.empty_like(vectors), torch.zeros_like(codebook)
        of_bias = None if bias is None else torch.zeros_like(bias)
        for block, out in zip(vectors.split(ctx.rows), of_vectors.split(ctx.rows), strict=True):
            log_p, p = _softmax(block, codebook, ctx.scale, bias)
            # Both figures are a mean of f(p): the gradient by the logits is p (f' − Σ p f').
            inner = of_mean - of_entropy * (log_p + 1)
            of_scores = p * (inner - (p * inner).sum(1, keepdim=True)) * (ctx.scale / len(vectors))
            torch.mm(of_scores, codebook, out=out)
            of_codebook.addmm_(of_scores.t(), block)
            if of_bias is not None:
                of_bias += of_scores.sum(0)
        return of_vectors, of_codebook, None, of_bias


def assignment_entropy(
    vectors: torch.Tensor, codebook: torch.Tensor, scale: float, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How sure each vector is of its code, and how evenly all codes are used, in nats.

    An assignment is softmax(scale (v·c + bias)): with bias −|c|²/2, that of −scale |v − c|²/2.

    Args:
        vectors (M, d), codebook (K, d), bias (K,) or None: float; gradients reach all of them.

    Returns:
        the mean entropy of the vectors' assignments; and the entropy of the mean assignment over the global batch, with
        a gradient that DDP's averaging over processes makes the global one.
    """
    entropy, mean = _Assignments.apply(vectors, codebook, scale, bias)
    everywhere = sum_over_processes(mean.detach().clone()) / world()[1]
    mean = mean + (everywhere - mean.detach())
    return entropy, torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
