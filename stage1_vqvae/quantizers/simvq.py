"""SimVQ: a frozen random codebook seen through one learned linear map, so that every code moves with every gradient.

Source: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.search import nearest
from stage1_vqvae.quantizers.sections import Estimator as GradientEstimator
from stage1_vqvae.quantizers.sections import TableParams
from tessera.parameters.sections import NonNegative


class Parameters(TableParams):
    """Parameters of `simvq`."""

    commitment_cost: NonNegative
    gradient_estimator: GradientEstimator
    diveq_variance: NonNegative


class SimVQ(Quantizer):
    """Nearest of the codes `frozen` · `map`. The loss is the codebook's term plus `commitment_cost` times the other."""

    residual_scale = 1.0

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        commitment_cost: float,
        gradient_estimator: str,
        diveq_variance: float,
    ) -> None:
        super().__init__(codebook_size)
        self.dim = self.code_dim = codebook_dim
        self.commitment_cost, self.estimator = commitment_cost, Estimator(gradient_estimator, diveq_variance)
        self.register_buffer("frozen", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.map = nn.Linear(codebook_dim, codebook_dim, bias=False)

    @property
    def stochastic(self) -> bool:
        return self.estimator.stochastic

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The nearest code of each target (..., D)."""
        with torch.no_grad():
            indices = nearest(target.detach().reshape(-1, self.dim), self.map(self.frozen)).view(*target.shape[:-1], 1)
        code = self.embed(indices)
        loss = F.mse_loss(code, target.detach()) + self.commitment_cost * F.mse_loss(target, code.detach())
        z_q = code
        if self.training:
            self.note(indices)
            z_q = self.estimator(target, code, seeds)
        return QuantizerOutput(z_q, indices, loss, target.detach(), code.detach())

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.map(F.embedding(indices.squeeze(-1), self.frozen))
