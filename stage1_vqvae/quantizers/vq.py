"""The vector quantizer of van den Oord et al. 2017, with an EMA or a gradient codebook.

Contract of every quantizer: `forward(z)`, `lookup(indices)`, `start(vectors, random)`, `reestimate(counts, sums)`,
`update(step, seed)`, `discard()`, `codebook_size`, `codebook_dim`, `depth`. Arithmetic is float32 under any autocast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.distributed import sum_over_processes, world
from common.randomness import generator
from stage1_vqvae.quantizers.gradients import GRADIENT_ESTIMATORS


class QuantizerOutput(NamedTuple):
    """z_q (..., D) float32, indices (..., depth) int64, loss: the quantizer's term of the training loss."""

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor


@torch.no_grad()
def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index (M,) of the nearest code (K, D) of each vector (M, D), by Euclidean distance; ties go to the lowest.

    Works in blocks of rows that fit a core's cache, so the full M x K distance matrix never exists.
    """
    half_norms = codebook.square().sum(1).mul(-0.5)
    transposed = codebook.t()
    rows = max(64, 2**19 // len(codebook))
    if vectors.is_cuda:
        rows *= 64
    return torch.cat([torch.addmm(half_norms, block, transposed).argmax(1) for block in vectors.split(rows)])


def kmeans(vectors: torch.Tensor, size: int, rounds: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from random distinct vectors; an empty cluster starts again at a random vector.

    Returns:
        centres (size, D), and how many vectors each has (size,).
    """

    def draw(count: int) -> torch.Tensor:
        if len(vectors) >= count:
            picks = torch.randperm(len(vectors), generator=random)[:count]
            return vectors[picks.to(vectors.device)]
        picks = torch.randint(len(vectors), (count,), generator=random)
        jitter = torch.randn(count, vectors.shape[1], generator=random).to(vectors.device) * vectors.std() * 1e-2
        return vectors[picks.to(vectors.device)] + jitter

    centres = draw(size)
    for _ in range(rounds):
        counts, sums = gather_statistics(vectors, nearest(vectors, centres), size)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], draw(size))
    return centres, torch.bincount(nearest(vectors, centres), minlength=size).to(vectors.dtype)


def gather_statistics(vectors: torch.Tensor, indices: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the vectors (M, D) each code has (size,), and their sums (size, D)."""
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    return counts, torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device).index_add_(
        0, indices, vectors
    )


class VectorQuantizer(nn.Module):
    """Nearest code of a codebook (K, D).

    β (`commitment_cost`) is on the commitment term, as in the paper; squared errors are averaged over all elements.
    With `codebook_update` ema the codes are running means of their vectors (the paper's appendix A.1), counts smoothed
    by `ema_epsilon` and the smoothing not fed back; with gradient they are a parameter with the paper's second term.
    """

    depth = 1

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        codebook_update: str,
        ema_decay: float,
        ema_epsilon: float,
        commitment_cost: float,
        gradient_estimator: str,
        start: str,
        kmeans_rounds: int,
        revival_threshold: float,
    ) -> None:
        super().__init__()
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.learned = codebook_update == "gradient"
        self.ema_decay, self.ema_epsilon, self.commitment_cost = ema_decay, ema_epsilon, commitment_cost
        self.gradient_estimator, self.kmeans_rounds = gradient_estimator, kmeans_rounds
        self.start_from_data, self.revival_threshold = start == "kmeans", revival_threshold
        codebook = torch.randn(codebook_size, codebook_dim)
        if self.learned:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # One a code: the share that a batch of `codebook_size` vectors would give it.
        self.register_buffer("ema_count", torch.ones(codebook_size))
        self.register_buffer("ema_sum", codebook.clone())
        self._gathered: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.compiler.disable
    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize z (..., D). In training, also gather what `update` needs; nothing moves here."""
        if z.shape[-1] != self.codebook_dim:
            raise ValueError(f"expected vectors of codebook_dim {self.codebook_dim}, got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            vectors = z.detach().reshape(-1, self.codebook_dim)
            indices = nearest(vectors, self.codebook)
            code = F.embedding(indices, self.codebook).view(z.shape)
            loss = self.commitment_cost * F.mse_loss(z, code.detach())
            if self.learned:
                loss = loss + F.mse_loss(code, z.detach())
            if self.training:
                self._gathered.append((vectors, indices))
                z_q = GRADIENT_ESTIMATORS[self.gradient_estimator](z, code)
            else:
                z_q = code
            return QuantizerOutput(z_q, indices.view(*z.shape[:-1], 1), loss)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """The codes z_q (..., D) of indices (..., 1)."""
        return F.embedding(indices.squeeze(-1), self.codebook)

    @torch.no_grad()
    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """Begin at the data: k-means over vectors (M, D), the same on every process."""
        if self.start_from_data:
            centres, counts = kmeans(vectors.float(), self.codebook_size, self.kmeans_rounds, random)
            self.codebook.copy_(centres)
            self.ema_count.copy_(counts * self.codebook_size / len(vectors))
            self.ema_sum.copy_(centres * self.ema_count[:, None])

    @torch.no_grad()
    def reestimate(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Put every used code at the mean of its vectors, given their counts (K,) and sums (K, D)."""
        used = counts > 0
        self.codebook.copy_(torch.where(used[:, None], sums / counts.clamp_min(1)[:, None], self.codebook))
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])

    def discard(self) -> None:
        """Forget what was gathered since the last `update`."""
        self._gathered.clear()

    @torch.no_grad()
    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Once for each optimizer step with finite gradients: move the EMA, revive dead codes, the same everywhere.

        Returns:
            perplexity: of the global batch's codes.
        """
        vectors = torch.cat([v for v, _ in self._gathered])
        counts, sums = gather_statistics(vectors, torch.cat([i for _, i in self._gathered]), self.codebook_size)
        self.discard()
        sum_over_processes(counts)
        self.ema_count.lerp_(counts, 1 - self.ema_decay)
        if not self.learned:
            self.ema_sum.lerp_(sum_over_processes(sums), 1 - self.ema_decay)
            mass = self.ema_count.sum()
            smoothed = (self.ema_count + self.ema_epsilon) / (mass + self.codebook_size * self.ema_epsilon) * mass
            # Where nothing counts and nothing is added (ema_epsilon 0), 0/0 would be a code nearest to everything.
            self.codebook.copy_(self.ema_sum / smoothed.clamp_min(torch.finfo(smoothed.dtype).tiny)[:, None])
        if self.revival_threshold:
            self._revive(vectors, generator("revive", seed, step, self.codebook_size))
        shares = counts / counts.sum()
        return {"perplexity": torch.special.entr(shares).sum().exp()}

    def _revive(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """A code used less than `revival_threshold` of its even share takes a random vector of the global batch.

        Code, count and sum are reset together: resetting the code alone would let the old EMA undo it.
        """
        rank, size = world()
        here, everywhere = len(vectors), len(vectors) * size
        if everywhere >= self.codebook_size:
            picks = torch.randperm(everywhere, generator=random)[: self.codebook_size]
        else:
            picks = torch.randint(everywhere, (self.codebook_size,), generator=random)
        own = (picks // here == rank).to(vectors.device)
        candidates = torch.where(own[:, None], vectors[(picks % here).to(vectors.device)], 0.0)
        sum_over_processes(candidates)
        even_share = self.ema_count.sum() / self.codebook_size
        dead = self.ema_count < self.revival_threshold * even_share
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.ema_sum.copy_(torch.where(dead[:, None], candidates * even_share, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, even_share, self.ema_count))
