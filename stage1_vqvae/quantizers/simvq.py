"""SimVQ: a frozen random codebook behind one learned linear map, so that every gradient moves every code.

Source: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer".
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.search import nearest
from stage1_vqvae.quantizers.sections import EstimatorName, TableParams
from tessera.parameters.sections import NonNegative


class Parameters(TableParams):
    """The section `simvq` of params.yaml."""

    no_residual: ClassVar[str | None] = None
    approximates: ClassVar[bool] = True
    commitment_cost: NonNegative
    gradient_estimator: EstimatorName
    diveq_variance: NonNegative


class SimVQ(Quantizer):
    """Takes the nearest code, where the codes (K, D) are `map` applied to the rows of `frozen`.

    The loss is mean((sg(z) − c)²) + `commitment_cost` · mean((z − sg(c))²), where sg stops the gradient.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        commitment_cost: float,
        gradient_estimator: str,
        diveq_variance: float,
        inside_residual: bool = False,
    ) -> None:
        super().__init__(codebook_size, inside_residual=inside_residual)
        self.dim = self.code_dim = codebook_dim
        self.commitment_cost, self.estimator = commitment_cost, Estimator(gradient_estimator, diveq_variance)
        self.stochastic = self.estimator.stochastic
        self.register_buffer("frozen", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.map = nn.Linear(codebook_dim, codebook_dim, bias=False)

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Takes the nearest code of each target (..., D)."""
        with torch.no_grad():
            indices = nearest(target.detach().reshape(-1, self.dim), self.map(self.frozen)).view(*target.shape[:-1], 1)
        code = self.embed(indices)
        loss = F.mse_loss(code, target.detach()) + self.commitment_cost * F.mse_loss(target, code.detach())
        if self.training:
            self.note(indices)
        z_q = self.apply_estimator(target, code, seeds)
        return QuantizerOutput(z_q, indices, loss, target.detach(), code.detach())

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.map(F.embedding(indices.squeeze(-1), self.frozen))
