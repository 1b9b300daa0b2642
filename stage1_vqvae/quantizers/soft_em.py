"""Soft EM: in training a vector belongs to several codes, drawn by their closeness.

Source: Roy et al. 2018, "Theory and Experiments on Vector Quantized Autoencoders", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.noise import uniforms
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.quantizers.search import centre_of
from stage1_vqvae.quantizers.sections import TableParams, Threshold
from stage1_vqvae.quantizers.vq import VectorQuantizer
from tessera.parameters.sections import Count, Decay, NonNegative, Positive

BLOCK = 2**22  # probabilities held at a time


class Parameters(TableParams):
    """Parameters of `soft_em`."""

    draws: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        "gradient_estimator": "the decoder gets the mean of drawn codes, to which only straight_through applies",
    }
    samples: Positive
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold


class SoftEM(Quantizer):
    """`samples` codes a vector from softmax(−|z − c|²), of which the decoder gets the mean.

    The EMA gives each drawn code an equal part of the vector, the commitment pulls z to the mean, and the gradient goes
    straight through. In evaluation the nearest code stands alone. `hard` is the codebook: its start, EMA and revival.
    """

    stochastic, draws, residual_scale = True, True, 1.0

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
        super().__init__(codebook_size)
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
        self.dim = self.code_dim = codebook_dim
        self.samples, self.commitment_cost = samples, commitment_cost
        self.at_data = self.hard.at_data
        self.estimator = Estimator("straight_through")

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """In training the mean of codes drawn for each target (B, ..., D), the first as its index; otherwise the
        nearest."""
        if not self.training:
            return self.hard.quantize(target)
        drawn = self._draw(target.detach(), self.samples, seeds)
        code = F.embedding(drawn, self.hard.codebook).mean(1).view(target.shape)
        self.hard.gather(target.detach().reshape(-1, self.dim), drawn)
        loss = self.commitment_cost * F.mse_loss(target, code)
        first = drawn[:, 0].view(*target.shape[:-1], 1)
        return QuantizerOutput(self.estimator(target, code), first, loss, target.detach(), code)

    def _assignments(self, vectors: torch.Tensor) -> Iterator[torch.Tensor]:
        """softmax(−|z − c|²) over the codes of vectors (M, D), a block of rows (rows, K) at a time."""
        centre = centre_of(self.hard.codebook)
        codebook = self.hard.codebook - centre
        bias = -codebook.square().sum(1)  # |z|² is the same for every code
        for block in vectors.split(self._rows):
            yield torch.addmm(bias, block - centre, codebook.t(), alpha=2).softmax(1)

    @property
    def _rows(self) -> int:
        return max(1, BLOCK // self.codebook_size)

    def _draw(self, target: torch.Tensor, count: int, seeds: torch.Tensor | None) -> torch.Tensor:
        """int64 (M, count): codes of each target (B, ..., D), with replacement, by inverse CDF."""
        chances = uniforms((*target.shape[:-1], count), seeds, target.device).reshape(-1, count)
        drawn = []
        assignments = self._assignments(target.reshape(-1, self.dim))
        for shares, chance in zip(assignments, chances.split(self._rows), strict=True):
            cumulative = shares.cumsum(1)
            drawn.append(torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True))
        return torch.cat(drawn).clamp_max_(self.codebook_size - 1)

    def pick(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """One code drawn a target (B, ..., D)."""
        return self._draw(target.detach(), 1, seeds).view(*target.shape[:-1], 1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.hard.embed(indices)

    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """As the hard quantizer's."""
        self.hard.start(vectors, random)

    @torch.no_grad()
    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Put every code at the mean of vectors (M, D), each weighed by its assignment: where the EMA leads to."""
        counts, sums = torch.zeros_like(self.hard.ema_count), torch.zeros_like(self.hard.ema_sum)
        for vectors in batches():
            for block, shares in zip(vectors.split(self._rows), self._assignments(vectors), strict=True):
                counts += shares.sum(0)
                sums += shares.t() @ block
        self.hard.place(counts, sums)

    def shared(self, calls: int) -> None:
        self.hard.shared(calls)

    def discard(self) -> None:
        self.hard.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """As the hard quantizer's; the perplexity is of the drawn codes."""
        return self.hard.update(step, seed)
