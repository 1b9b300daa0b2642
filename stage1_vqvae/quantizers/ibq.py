"""Index backpropagation quantization: the gradient goes through a softmax over all codes, so that all of them move.

Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization", section 3.2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.entropy import assignment_entropy
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.search import best
from stage1_vqvae.quantizers.sections import TableParams
from tessera.parameters.sections import NonNegative, PositiveFloat

BLOCK = 2**22  # logits computed at a time


class _IndexBackpropagation(torch.autograd.Function):
    """Computes (onehot + p − sg(p)) C, where p = softmax(z Cᵀ) and sg stops the gradient.

    The value is the chosen row of C. The gradient reaches z, and all rows of C through p. The backward pass works on
    blocks of rows and computes p again instead of keeping it.
    """

    @staticmethod
    def forward(ctx, vectors, codebook, indices):
        ctx.save_for_backward(vectors, codebook, indices)
        return F.embedding(indices, codebook)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        vectors, codebook, indices = ctx.saved_tensors
        of_vectors = torch.empty_like(vectors)
        of_codebook = torch.zeros_like(codebook).index_add_(0, indices, gradient)  # through onehot
        rows = max(1, BLOCK // len(codebook))
        for block, above, out in zip(vectors.split(rows), gradient.split(rows), of_vectors.split(rows), strict=True):
            p, of_p = (block @ codebook.t()).softmax(1), above @ codebook.t()
            of_logits = p * (of_p - (p * of_p).sum(1, keepdim=True))
            torch.mm(of_logits, codebook, out=out)
            of_codebook.addmm_(of_logits.t(), block)
        return of_vectors, of_codebook, None


class Parameters(TableParams):
    """The section `ibq` of params.yaml."""

    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "the gradient goes through the softmax over all codes"}
    no_residual: ClassVar[str | None] = (
        "its code is the one with the largest product and not the nearest, so what is left over need not be smaller"
    )

    codebook_cost: NonNegative
    entropy_cost: NonNegative
    entropy_temperature: PositiveFloat


class IBQ(Quantizer):
    """Takes the code with the largest product z·c.

    The loss is a sum of four terms, where sg stops the gradient and z_q is what the decoder receives:
    mean((z_q − z)²); mean((sg(c) − z)²); `codebook_cost` · mean((c − sg(z))²); and `entropy_cost` times (the mean
    entropy of the vectors' soft assignments − the entropy of the mean assignment). The soft assignment of z is
    softmax(z·c/`entropy_temperature`).

    A weight average includes the codes. They are not re-estimated as means of their vectors, because products and the
    decoder want them elsewhere.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        codebook_cost: float,
        entropy_cost: float,
        entropy_temperature: float,
    ) -> None:
        super().__init__(codebook_size)
        self.dim = self.code_dim = codebook_dim
        self.codebook_cost, self.entropy_cost = codebook_cost, entropy_cost
        self.entropy_temperature = entropy_temperature
        self.whole_batch = entropy_cost > 0
        self.embedding = nn.Parameter(torch.randn(codebook_size, codebook_dim))

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Takes the code with the largest product for each target (..., D)."""
        vectors = target.reshape(-1, self.dim)
        indices = best(vectors.detach(), self.embedding.detach())
        code = F.embedding(indices, self.embedding)
        z_q = _IndexBackpropagation.apply(vectors, self.embedding, indices)
        if self.training:
            self.note(indices)
        loss = F.mse_loss(z_q, vectors) + F.mse_loss(vectors, code.detach())
        loss = loss + self.codebook_cost * F.mse_loss(code, vectors.detach())
        if self.training and self.entropy_cost:
            of_each, of_mean = assignment_entropy(vectors, self.embedding, 1 / self.entropy_temperature)
            loss = loss + self.entropy_cost * (of_each - of_mean)
        shape, places = target.shape, (*target.shape[:-1], 1)
        return QuantizerOutput(z_q.view(shape), indices.view(places), loss, target.detach(), code.detach().view(shape))

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return F.embedding(indices.squeeze(-1), self.embedding)
