"""The vector quantizer of van den Oord et al. 2017, with an EMA or a gradient codebook.

docs/architecture.md has the contract of every quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.entropy import assignment_entropy
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput, perplexity
from stage1_vqvae.quantizers.search import best, centre_of, gather_statistics, kmeans, nearest
from stage1_vqvae.quantizers.sections import Estimator as GradientEstimator
from stage1_vqvae.quantizers.sections import TableParams, Threshold
from tessera.distributed import sum_over_processes, world
from tessera.parameters.sections import Count, Decay, Misfit, NonNegative, Positive, PositiveFloat
from tessera.randomness import generator

SHORTEST = 1e-15  # of a sum that still has a direction: its squares are above float32's smallest


class Parameters(TableParams):
    """Parameters of `vq`."""

    projection_dim: Positive | None
    distance: Literal["euclidean", "cosine"]
    codebook_update: Literal["ema", "gradient"]
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    codebook_cost: NonNegative
    entropy_bonus: NonNegative
    entropy_temperature: PositiveFloat
    gradient_estimator: GradientEstimator
    diveq_variance: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold

    @property
    def revives_learned_codes(self) -> bool:
        """Whether codes are placed by the decoder alone, not at the means of their vectors, and are revived."""
        return self.codebook_update == "gradient" and not self.codebook_cost and self.revival_threshold > 0

    @property
    def no_residual(self) -> str | None:
        if self.distance == "cosine":
            return "with distance cosine, the residual of a unit vector is no unit vector"
        if self.projection_dim is not None:
            return "with projection_dim, the residual would leave the projection; lower codebook_dim instead"
        return None

    def fits_together(self) -> None:
        costs = self.codebook_cost or self.entropy_bonus
        if self.codebook_update == "gradient" and self.gradient_estimator != "diveq" and not costs:
            raise Misfit(
                f"nothing would train the codes: {self.gradient_estimator} passes them no gradient and codebook_cost "
                "is 0; set codebook_cost (1 is the paper's), gradient_estimator: diveq, or codebook_update: ema"
            )


class VectorQuantizer(Quantizer):
    """Nearest code of a codebook (K, d).

    β (`commitment_cost`) is on the commitment term, as in the paper; squared errors are averaged over all elements.
    With `codebook_update` ema the codes are running means of their vectors (the paper's appendix A.1), counts smoothed
    by `ema_epsilon` and the smoothing not fed back; with gradient they are a parameter with the paper's second term,
    times `codebook_cost`.

    With `distance` cosine, vectors and codes lie on the unit sphere. `projection_dim` puts the codes into a learned
    projection of z, of that width (ViT-VQGAN, Yu et al. 2022, section 3.2). `entropy_bonus` times (mean entropy of each
    vector's assignment − entropy of the mean assignment) joins the loss, an assignment being softmax(−|z −
    c|²/`entropy_temperature`) over the codes.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        projection_dim: int | None,
        distance: str,
        codebook_update: str,
        ema_decay: float,
        ema_epsilon: float,
        commitment_cost: float,
        codebook_cost: float,
        entropy_bonus: float,
        entropy_temperature: float,
        gradient_estimator: str,
        diveq_variance: float,
        start: str,
        kmeans_rounds: int,
        revival_threshold: float,
    ) -> None:
        super().__init__(codebook_size)
        width = projection_dim or codebook_dim
        self.dim, self.code_dim = codebook_dim, width
        self.project_in = nn.Linear(codebook_dim, width) if projection_dim else nn.Identity()
        self.project_out = nn.Linear(width, codebook_dim) if projection_dim else nn.Identity()
        self.on_sphere, self.learned = distance == "cosine", codebook_update == "gradient"
        self.ema_decay, self.ema_epsilon = ema_decay, ema_epsilon
        self.commitment_cost, self.codebook_cost = commitment_cost, codebook_cost
        self.entropy_bonus, self.entropy_temperature = entropy_bonus, entropy_temperature
        self.estimator = Estimator(gradient_estimator, diveq_variance)
        self.at_data, self.kmeans_rounds = start == "kmeans", kmeans_rounds
        self.revival_threshold = revival_threshold
        self.residual_scale = None if projection_dim or self.on_sphere else 1.0
        codebook = self._placed(torch.randn(codebook_size, width))
        if self.learned:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # Learned without a cost of its own, a code is where the decoder wants it, and not the mean of its vectors.
        self.settled = () if self.learned and not codebook_cost else ("codebook",)
        # One a code: the share that a batch of `codebook_size` vectors would give it.
        self.register_buffer("ema_count", torch.ones(codebook_size))
        self.register_buffer("ema_sum", codebook.clone())
        self._gathered: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def stochastic(self) -> bool:
        return self.estimator.stochastic

    def _placed(self, vectors: torch.Tensor) -> torch.Tensor:
        """Where codes may lie: anywhere, or on the unit sphere."""
        return F.normalize(vectors, dim=-1) if self.on_sphere else vectors

    @property
    def codes(self) -> torch.Tensor:
        """The codes (K, d) as they are compared and looked up."""
        return self._placed(self.codebook) if self.learned else self.codebook

    def find(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index (M,) of the code of each vector (M, d)."""
        return best(vectors, self.codes) if self.on_sphere else nearest(vectors, self.codes)

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) to where the codes lie (..., d)."""
        return self._placed(self.project_in(z))

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """The code of each target (..., d)."""
        vectors = target.detach().reshape(-1, self.code_dim)
        indices, codes = self.find(vectors), self.codes
        code = F.embedding(indices, codes).view(target.shape)
        loss = self.commitment_cost * F.mse_loss(target, code.detach())
        if self.learned:
            loss = loss + self.codebook_cost * F.mse_loss(code, target.detach())
        z_q = code
        if self.training:
            self.gather(vectors, indices[:, None])
            if self.entropy_bonus:
                loss = loss + self.entropy_bonus * self.unevenness(target.reshape(-1, self.code_dim), codes)
            z_q = self.estimator(target, code, seeds)
        indices = indices.view(*target.shape[:-1], 1)
        return QuantizerOutput(self.project_out(z_q), indices, loss, target.detach(), code.detach())

    def unevenness(self, vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Mean entropy of the assignments of vectors (M, d) less the entropy of their mean, nats."""
        centre = centre_of(codes)  # as in `nearest`
        vectors, codes = vectors - centre, codes - centre
        bias = -0.5 * codes.square().sum(1)
        sure, even = assignment_entropy(vectors, codes, 2 / self.entropy_temperature, bias)
        return sure - even

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.project_out(F.embedding(indices.squeeze(-1), self.codes))

    @torch.no_grad()
    def start(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """Begin at the data: k-means over vectors (M, D), the same on every process."""
        if self.at_data:
            vectors = self.bound(vectors.float())
            centres, counts = kmeans(vectors, self.codebook_size, self.kmeans_rounds, random)
            counts = counts.clamp_min(1)  # a code without vectors stays at its place, instead of at 0/ε
            self.codebook.copy_(self._placed(centres))
            self.ema_count.copy_(counts * self.codebook_size / len(vectors))
            self.ema_sum.copy_(centres * self.ema_count[:, None])

    @torch.no_grad()
    def settle(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Put every code at the mean of its vectors, of all the batches (M, D)."""
        if not self.settled:
            return
        counts, sums = torch.zeros_like(self.ema_count), torch.zeros_like(self.ema_sum)
        for vectors in batches():
            vectors = self.bound(vectors.float())
            more = gather_statistics(vectors, self.find(vectors), self.codebook_size)
            counts += more[0]
            sums += more[1]
        self.place(counts, sums)

    def place(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Put codes at the means of vectors summed (K, d) and counted (K,); a code without any stays."""
        some = counts > torch.finfo(counts.dtype).tiny  # they may be sums of shares
        means = self._placed(sums / counts.masked_fill(~some, 1)[:, None])
        self.codebook.copy_(torch.where(some[:, None], means, self.codebook))
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])

    def gather(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Note vectors (M, d) and the codes of each (M, m), which share it evenly, for `update`."""
        self._gathered.append((vectors, indices))

    def discard(self) -> None:
        """Forget what was gathered since the last `update`."""
        self._gathered.clear()

    @torch.no_grad()
    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Move the EMA, revive dead codes; the same everywhere. The perplexity is of the global batch's codes."""
        # Of the calls for the same positions (groups, depths) position by position, so that the vectors of processes,
        # or of micro-batches, end to end are in the order that one batch has.
        passes = range(0, len(self._gathered), self.calls)
        vectors, indices = (
            torch.cat(
                [torch.stack([c[part] for c in self._gathered[p : p + self.calls]], 1).flatten(0, 1) for p in passes]
            )
            for part in (0, 1)
        )
        self.discard()
        each = indices.shape[1]
        counts = sum_over_processes(torch.bincount(indices.flatten(), minlength=self.codebook_size).to(vectors.dtype))
        self.ema_count.lerp_(counts / each, 1 - self.ema_decay)
        if not self.learned:
            shared = vectors.repeat_interleave(each, 0) if each > 1 else vectors
            sums = sum_over_processes(gather_statistics(shared, indices.flatten(), self.codebook_size)[1])
            self.ema_sum.lerp_(sums / each, 1 - self.ema_decay)
            self.codebook.copy_(self._means())
        if self.revival_threshold:
            self._revive(vectors, generator("revive", seed, step, self.codebook_size))
        return {"perplexity": perplexity(counts)}

    def _means(self) -> torch.Tensor:
        """The running means (K, d): of the sums, or, on the sphere, their directions, where there is one."""
        tiny = torch.finfo(self.ema_sum.dtype).tiny
        if self.on_sphere:
            norm = self.ema_sum.norm(dim=-1, keepdim=True)
            return torch.where(norm > SHORTEST, self.ema_sum / norm.clamp_min(tiny), self.codebook)
        mass = self.ema_count.sum()
        smoothed = (self.ema_count + self.ema_epsilon) / (mass + self.codebook_size * self.ema_epsilon) * mass
        # Where nothing counts and nothing is added (ema_epsilon 0), 0/0 would be a code nearest to everything.
        return self.ema_sum / smoothed.clamp_min(tiny)[:, None]

    def _revive(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """A code used less than `revival_threshold` of its even share takes a random vector of the global batch.

        Code, count and sum are reset together: resetting the code alone would let the old EMA undo it.
        """
        even_share = self.ema_count.sum() / self.codebook_size
        dead = self.ema_count < self.revival_threshold * even_share
        if not dead.any():
            return
        rank, size = world()
        here, everywhere = len(vectors), len(vectors) * size
        if everywhere >= self.codebook_size:
            picks = torch.randperm(everywhere, generator=random)[: self.codebook_size]
        else:
            picks = torch.randint(everywhere, (self.codebook_size,), generator=random)
        own = (picks // here == rank).to(vectors.device)
        candidates = torch.where(own[:, None], vectors[(picks % here).to(vectors.device)], 0.0)
        sum_over_processes(candidates)
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.ema_sum.copy_(torch.where(dead[:, None], candidates * even_share, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, even_share, self.ema_count))
