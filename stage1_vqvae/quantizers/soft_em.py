"""Soft EM: in training a vector belongs to several codes, drawn by their closeness.

Source: Roy et al. 2018, "Theory and Experiments on Vector Quantized Autoencoders", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.noise import uniforms
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.vq import VectorQuantizer

BLOCK = 2**22  # probabilities held at a time


class SoftEM(nn.Module):
    """`samples` codes a vector from softmax(−|z − c|²), of which the decoder gets the mean.

    The EMA gives each drawn code an equal part of the vector, the commitment pulls z to the mean, and the gradient goes
    straight through. In evaluation the nearest code stands alone. `hard` is the codebook: its start, EMA and revival.
    """

    depth, stochastic, draws = 1, True, True

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        samples: int,
        ema_decay: float,
        ema_epsilon: float,
        commitment_cost: float,
        start: str,
        kmeans_rounds: int,
        revival_threshold: float,
    ) -> None:
        super().__init__()
        self.hard = VectorQuantizer(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            projection_dim=None,
            distance="euclidean",
            codebook_update="ema",
            ema_decay=ema_decay,
            ema_epsilon=ema_epsilon,
            commitment_cost=commitment_cost,
            codebook_cost=0.0,
            entropy_bonus=0.0,
            entropy_temperature=1.0,
            gradient_estimator="straight_through",
            diveq_variance=0.0,
            start=start,
            kmeans_rounds=kmeans_rounds,
            revival_threshold=revival_threshold,
        )
        self.codebook_size, self.dim, self.code_dim = codebook_size, codebook_dim, codebook_dim
        self.samples, self.commitment_cost, self.residual_scale = samples, commitment_cost, 1.0
        self.estimator = Estimator("straight_through")

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        return z

    @torch.compiler.disable
    def forward(self, z: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize z (B, ..., D); the indices are of the nearest codes, whatever was drawn."""
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(z.float(), seeds)

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """In training the mean of codes drawn for each target (B, ..., D), otherwise its nearest code."""
        if not self.training:
            return self.hard.quantize(target)
        vectors = target.detach().reshape(-1, self.dim)
        drawn = self._draw(target.detach(), self.samples, seeds)
        code = F.embedding(drawn, self.hard.codebook).mean(1).view(target.shape)
        self.hard.gather(vectors, drawn)
        loss = self.commitment_cost * F.mse_loss(target, code)
        nearest = self.hard.find(vectors).view(*target.shape[:-1], 1)
        return QuantizerOutput(self.estimator(target, code), nearest, loss, target.detach(), code)

    def _draw(self, target: torch.Tensor, count: int, seeds: torch.Tensor | None) -> torch.Tensor:
        """int64 (M, count): codes of each target (B, ..., D), with replacement, by inverse CDF in blocks of rows."""
        codebook = self.hard.codebook
        vectors = target.reshape(-1, self.dim)
        chances = uniforms((*target.shape[:-1], count), seeds, target.device).reshape(-1, count)
        drawn, bias = [], -codebook.square().sum(1)
        rows = max(1, BLOCK // len(codebook))
        for block, chance in zip(vectors.split(rows), chances.split(rows), strict=True):
            # −|z|² is the same for every code.
            cumulative = torch.addmm(bias, block, codebook.t(), alpha=2).softmax(1).cumsum(1)
            drawn.append(torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True))
        return torch.cat(drawn).clamp_max_(len(codebook) - 1)

    def draw(self, z: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Indices (B, ..., 1): one code drawn a position of z (B, ..., D)."""
        return self._draw(z.detach().float(), 1, seeds).view(*z.shape[:-1], 1)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """The codes z_q (..., D) of indices (..., 1)."""
        return self.hard.lookup(indices)

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        self.hard.start(vectors, random)

    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        self.hard.settle(batches)

    def discard(self) -> None:
        self.hard.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """As the hard quantizer's; the perplexity is of the drawn codes."""
        return self.hard.update(step, seed)
