"""Soft EM: in training a vector is assigned to several codes, drawn at random with closer codes more likely.

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

BLOCK = 2**22  # probabilities computed at a time


class Parameters(TableParams):
    """The section `soft_em` of params.yaml."""

    can_draw: ClassVar[bool] = True
    no_residual: ClassVar[str | None] = None
    approximates: ClassVar[bool] = True
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
    """Draws `samples` codes for each vector from softmax(−|z − c|²), and gives the decoder their mean.

    The running mean of each drawn code gets an equal part of the vector. The commitment pulls z to the mean of the
    drawn codes, and the decoder's gradient passes straight through to z. In evaluation the nearest code is taken
    instead.

    The codebook belongs to `hard`, a vector quantizer. It initialises, updates and revives the codes.
    """

    stochastic = can_draw = True

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
        inside_residual: bool = False,
    ) -> None:
        super().__init__(codebook_size, inside_residual=inside_residual)
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
        self.estimator = Estimator("straight_through")

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Draws codes for each target (B, ..., D) in training, and takes the nearest code in evaluation.

        In training z_q is the mean of the drawn codes, and the index is that of the code drawn first.
        """
        if not self.training:
            return self.hard.quantize(target)
        drawn = self._draw(target.detach(), self.samples, seeds)
        code = F.embedding(drawn, self.hard.codebook).mean(1).view(target.shape)
        self.hard.gathered.add(target.detach().reshape(-1, self.dim), drawn)
        loss = self.commitment_cost * F.mse_loss(target, code)
        first = drawn[:, 0].view(*target.shape[:-1], 1)
        return QuantizerOutput(self.apply_estimator(target, code), first, loss, target.detach(), code)

    def _assignments(self, vectors: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields softmax(−|z − c|²) over the codes for vectors (M, D), in blocks of rows (rows, K)."""
        centre = centre_of(self.hard.codebook)
        codebook = self.hard.codebook - centre
        bias = -codebook.square().sum(1)  # |z|² is the same for every code
        for block in vectors.split(self._rows):
            yield torch.addmm(bias, block - centre, codebook.t(), alpha=2).softmax(1)

    @property
    def _rows(self) -> int:
        return max(1, BLOCK // self.codebook_size)

    def _draw(self, target: torch.Tensor, count: int, seeds: torch.Tensor | None) -> torch.Tensor:
        """Draws int64 (M, count) codes of targets (B, ..., D), with replacement and by inverse CDF."""
        chances = uniforms((*target.shape[:-1], count), seeds, target.device).reshape(-1, count)
        drawn = []
        assignments = self._assignments(target.reshape(-1, self.dim))
        for shares, chance in zip(assignments, chances.split(self._rows), strict=True):
            cumulative = shares.cumsum(1)
            drawn.append(torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True))
        return torch.cat(drawn).clamp_max_(self.codebook_size - 1)

    def draw_indices(self, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Draws one code for each target (B, ..., D)."""
        return self._draw(target.detach(), 1, seeds).view(*target.shape[:-1], 1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.hard.embed(indices)

    def initialise_from_data(self, vectors: Callable[[], torch.Tensor], random: torch.Generator) -> None:
        self.hard.initialise_from_data(vectors, random)

    @torch.no_grad()
    def re_estimate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Moves every code to the mean of vectors (M, D), each weighted by its assignment to that code.

        The running means of training converge to the same place.
        """
        counts, sums = torch.zeros_like(self.hard.ema_count), torch.zeros_like(self.hard.ema_sum)
        for vectors in batches():
            for block, shares in zip(vectors.split(self._rows), self._assignments(vectors), strict=True):
                counts += shares.sum(0)
                sums += shares.t() @ block
        self.hard.move_to_means(counts, sums)

    def expect_calls(self, times: int) -> None:
        self.hard.expect_calls(times)

    def discard(self) -> None:
        self.hard.discard()

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Updates and revives the codes. Returns the `perplexity` of the drawn codes of the global batch."""
        return self.hard.update(step, seed)
