"""Gumbel-softmax: a linear layer scores the codes, and training relaxes the choice by noise and a falling temperature.

Sources: Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax"; Ramesh et al. 2021, "Zero-Shot
Text-to-Image Generation", appendix A.2, for the cosine schedule of the temperature from 1 to 1/16.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import straight_through
from stage1_vqvae.quantizers.noise import gumbels
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import TableParams
from tessera.parameters.sections import NonNegative, Positive, PositiveFloat


class Parameters(TableParams):
    """The section `gumbel` of params.yaml."""

    can_draw: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        "gradient_estimator": "the gradient goes through the relaxed weights of the codes themselves",
    }
    no_residual: ClassVar[str | None] = (
        "its codes do not approximate vectors, so there is nothing left over to quantize"
    )

    temperature: PositiveFloat
    final_temperature: PositiveFloat
    anneal_steps: Positive
    hard: bool
    kl_cost: NonNegative


class GumbelQuantizer(Quantizer):
    """Gives the decoder the codes weighted by softmax((logits + Gumbel noise)/temperature).

    In evaluation it takes the code with the largest logit, and the gradient is that of the codes weighted by
    softmax(logits).

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of z and of the codes.
        temperature: the temperature at the start of training.
        final_temperature: the temperature after `anneal_steps` steps. It is reached along a cosine.
        anneal_steps: the number of optimizer steps over which the temperature falls.
        hard: True: the decoder gets the one code with the largest noisy logit, and the gradient is that of the weights.
        kl_cost: weight in the loss of the divergence of softmax(logits) from the uniform distribution, in nats,
            averaged over positions.
    """

    stochastic = can_draw = True

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        temperature: float,
        final_temperature: float,
        anneal_steps: int,
        hard: bool,
        kl_cost: float,
    ) -> None:
        super().__init__(codebook_size)
        self.dim, self.code_dim = codebook_dim, None
        self.hard, self.kl_cost, self.anneal_steps = hard, kl_cost, anneal_steps
        self.first_temperature, self.final_temperature = temperature, final_temperature
        self.logits = nn.Linear(codebook_dim, codebook_size)
        self.embedding = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        self.register_buffer("temperature", torch.tensor(temperature))

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Makes a relaxed draw for each target (B, ..., D) in training, and takes the likeliest code in evaluation."""
        logits = self.logits(target)
        log_p = logits.log_softmax(-1)
        divergence = (log_p.exp() * log_p).sum(-1).mean() + math.log(self.codebook_size)
        loss = self.kl_cost * divergence
        if not self.training:
            indices = logits.argmax(-1, keepdim=True)
            z_q = self.embed(indices)
            if torch.is_grad_enabled():
                z_q = straight_through(log_p.exp() @ self.embedding, z_q)
            return QuantizerOutput(z_q, indices, loss, None, None)
        noisy = (logits + gumbels(tuple(logits.shape), seeds, logits.device)) / self.temperature
        weights, indices = noisy.softmax(-1), noisy.argmax(-1, keepdim=True)
        if self.hard:
            weights = torch.zeros_like(weights).scatter_(-1, indices, 1.0) + weights - weights.detach()
        self.note(indices)
        return QuantizerOutput(weights @ self.embedding, indices, loss, None, None)

    def draw_indices(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws one code from softmax(logits) for each target (B, ..., D)."""
        logits = self.logits(target)
        return (logits + gumbels(tuple(logits.shape), seeds, logits.device)).argmax(-1, keepdim=True)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return F.embedding(indices.squeeze(-1), self.embedding)

    @torch.no_grad()
    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Lowers the temperature. Returns `temperature`, and the `perplexity` of the codes drawn in training."""
        progress = min(1.0, (step + 1) / self.anneal_steps)
        range_left = (self.first_temperature - self.final_temperature) * 0.5 * (1 + math.cos(math.pi * progress))
        self.temperature.fill_(self.final_temperature + range_left)
        return {**super().update(step, seed), "temperature": self.temperature.clone()}
