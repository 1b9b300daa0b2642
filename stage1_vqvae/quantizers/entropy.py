"""The entropy of soft assignments of vectors to codes, computed without the whole matrix of assignments.

Two entropies measure a codebook. Each vector should be sure of its code, so the mean entropy of the vectors'
assignments should be low. All codes should be used, so the entropy of the mean assignment should be high. Source: Yu et
al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), equation 5.
"""

from __future__ import annotations

import torch

from stage1_vqvae.quantizers.search import centre_of
from tessera.distributed import sum_over_processes, world

BLOCK = 2**22  # logits computed at a time


def _softmax(
    vectors: torch.Tensor, codebook: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms and probabilities, both (rows, K), of softmax(scale (v·c + bias)) over the codes."""
    scores = vectors @ codebook.t()
    log_p = ((scores if bias is None else scores + bias) * scale).log_softmax(1)
    return log_p, log_p.exp()


class _Assignments(torch.autograd.Function):
    """The mean entropy of the vectors' assignments, and the mean assignment (K,).

    Both directions work on blocks of rows. The backward pass computes the assignments again instead of keeping them.
    """

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
            # Both results are means of some f(p) over the vectors. The gradient of f(softmax(a)) with respect to the
            # logits a is p (f' − Σ p f').
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
    """The two entropies of the soft assignments softmax(scale (v·c + bias)) of vectors to codes, in nats.

    With bias −|c|²/2 the assignment is softmax(−scale |v − c|²/2), since |v|² is the same for every code.

    Args:
        vectors: float (M, d), this process's vectors.
        codebook: float (K, d).
        scale: the inverse temperature.
        bias: float (K,), or None for zeros.

    Returns:
        the mean entropy of this process's assignments, and the entropy of the mean assignment of all processes. Both
        are scalars with gradients for vectors, codebook and bias. DDP averages gradients over processes; the second
        entropy's gradient is such that the average is the gradient of the global batch.
    """
    entropy, mean = _Assignments.apply(vectors, codebook, scale, bias)
    everywhere = sum_over_processes(mean.detach().clone()) / world()[1]
    mean = mean + (everywhere - mean.detach())
    return entropy, torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()


def unevenness(vectors: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean entropy of assignments less the entropy of the mean assignment, for softmax(−|v − c|²/temperature).

    A loss term: it falls when vectors become surer of their codes, and when codes are used more evenly.

    Args:
        vectors: float (M, d), this process's vectors.
        codes: float (K, d).
        temperature: above 0.

    Returns:
        scalar, in nats.
    """
    centre = centre_of(codes)
    vectors, codes = vectors - centre, codes - centre
    bias = -0.5 * codes.square().sum(1)
    entropy_of_each, entropy_of_mean = assignment_entropy(vectors, codes, 2 / temperature, bias)
    return entropy_of_each - entropy_of_mean
