"""The vector quantizer of van den Oord et al. 2017, with an EMA or a gradient codebook.

docs/architecture.md has the contract of every quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from common.distributed import sum_over_processes, world
from common.randomness import generator
from stage1_vqvae.quantizers.gradients import GRADIENT_ESTIMATORS
from stage1_vqvae.quantizers.output import QuantizerOutput, perplexity
from stage1_vqvae.quantizers.search import gather_statistics, kmeans, nearest


class VectorQuantizer(nn.Module):
    """Nearest code of a codebook (K, D).

    β (`commitment_cost`) is on the commitment term, as in the paper; squared errors are averaged over all elements.
    With `codebook_update` ema the codes are running means of their vectors (the paper's appendix A.1), counts smoothed
    by `ema_epsilon` and the smoothing not fed back; with gradient they are a parameter with the paper's second term.
    """

    depth, stochastic = 1, False

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        codebook_update: str,
        ema_decay: float,
        ema_epsilon: float,
        commitment_cost: float,
        codebook_cost: float,
        gradient_estimator: str,
        start: str,
        kmeans_rounds: int,
        revival_threshold: float,
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim, self.code_dim = codebook_size, codebook_dim, codebook_dim
        self.learned = codebook_update == "gradient"
        self.ema_decay, self.ema_epsilon = ema_decay, ema_epsilon
        self.commitment_cost, self.codebook_cost = commitment_cost, codebook_cost
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
    def forward(self, z: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., D). In training, also gather what `update` needs; nothing moves here."""
        if z.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of codebook_dim {self.dim}, got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            vectors = z.detach().reshape(-1, self.dim)
            indices = nearest(vectors, self.codebook)
            code = F.embedding(indices, self.codebook).view(z.shape)
            loss = self.commitment_cost * F.mse_loss(z, code.detach())
            if self.learned:
                loss = loss + self.codebook_cost * F.mse_loss(code, z.detach())
            if self.training:
                self._gathered.append((vectors, indices))
                z_q = GRADIENT_ESTIMATORS[self.gradient_estimator](z, code)
            else:
                z_q = code
            return QuantizerOutput(z_q, indices.view(*z.shape[:-1], 1), loss, z.detach(), code.detach())

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
    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Put every code at the mean of its vectors, of all the batches (M, D); a code without any stays."""
        counts, sums = torch.zeros_like(self.ema_count), torch.zeros_like(self.ema_sum)
        for vectors in batches():
            more = gather_statistics(vectors.float(), nearest(vectors.float(), self.codebook), self.codebook_size)
            counts += more[0]
            sums += more[1]
        means = sums / counts.clamp_min(1)[:, None]
        self.codebook.copy_(torch.where(counts[:, None] > 0, means, self.codebook))
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
        return {"perplexity": perplexity(counts)}

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
