"""Gumbel-softmax: logits over the codes, relaxed by noise and a temperature that falls.

Sources: Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax"; Ramesh et al. 2021, "Zero-Shot
Text-to-Image Generation", appendix A.2 (the temperature's cosine schedule from 1 to 1/16).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.noise import gumbels
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.sections import TableParams
from tessera.parameters.sections import NonNegative, Positive, PositiveFloat


class Parameters(TableParams):
    """Parameters of `gumbel`."""

    draws: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        "gradient_estimator": "the gradient goes through the relaxed weights of the codes themselves",
    }
    no_residual: ClassVar[str | None] = "its codes approximate no vector, so that nothing is left over"

    temperature: PositiveFloat
    final_temperature: PositiveFloat
    anneal_steps: Positive
    hard: bool
    kl_cost: NonNegative


class GumbelQuantizer(Quantizer):
    """A linear layer gives logits; the decoder gets the codes weighed by softmax((logits + noise)/temperature).

    With `hard` it gets the likeliest of them alone, and the gradient goes through the weights. `kl_cost` weighs the
    divergence of softmax(logits) from the uniform distribution, nats a position, averaged. The temperature falls by a
    cosine from `temperature` to `final_temperature` over `anneal_steps` steps. In evaluation the likeliest code stands.
    """

    stochastic, draws = True, True

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
        self.first, self.last = temperature, final_temperature
        self.logits = nn.Linear(codebook_dim, codebook_size)
        self.embedding = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        self.register_buffer("temperature", torch.tensor(temperature))

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """A relaxed draw in training, otherwise the likeliest code."""
        logits = self.logits(target)
        log_p = logits.log_softmax(-1)
        divergence = (log_p.exp() * log_p).sum(-1).mean() + math.log(self.codebook_size)
        loss = self.kl_cost * divergence
        if not self.training:
            indices = logits.argmax(-1, keepdim=True)
            return QuantizerOutput(self.embed(indices), indices, loss, None, None)
        noisy = (logits + gumbels(tuple(logits.shape), seeds, logits.device)) / self.temperature
        weights, indices = noisy.softmax(-1), noisy.argmax(-1, keepdim=True)
        if self.hard:
            weights = torch.zeros_like(weights).scatter_(-1, indices, 1.0) + weights - weights.detach()
        self.note(indices)
        return QuantizerOutput(weights @ self.embedding, indices, loss, None, None)

    def pick(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """One code drawn from softmax(logits)."""
        logits = self.logits(target)
        return (logits + gumbels(tuple(logits.shape), seeds, logits.device)).argmax(-1, keepdim=True)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return F.embedding(indices.squeeze(-1), self.embedding)

    @torch.no_grad()
    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Let the temperature fall; the perplexity of the global batch's codes, noise and all, and the temperature."""
        progress = min(1.0, (step + 1) / self.anneal_steps)
        self.temperature.fill_(self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * progress)))
        return {**super().update(step, seed), "temperature": self.temperature.clone()}
