"""Vector quantization: each vector is replaced by its nearest code, with an EMA or a gradient codebook.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.entropy import unevenness
from stage1_vqvae.quantizers.gathered import GatheredVectors, rows_of_global_batch
from stage1_vqvae.quantizers.gradients import Estimator
from stage1_vqvae.quantizers.output import QuantizerOutput, perplexity
from stage1_vqvae.quantizers.search import best, gather_statistics, kmeans, nearest
from stage1_vqvae.quantizers.sections import EstimatorName, TableParams, Threshold
from tessera.distributed import sum_over_processes
from tessera.parameters.sections import Count, Decay, Misfit, NonNegative, Positive, PositiveFloat
from tessera.randomness import generator

# A sum of unit vectors that is shorter than this has no direction: the squares of its elements would underflow float32.
SHORTEST = 1e-15


class Parameters(TableParams):
    """The section `vq` of params.yaml."""

    approximates: ClassVar[bool] = True
    projection_dim: Positive | None
    distance: Literal["euclidean", "cosine"]
    codebook_update: Literal["ema", "gradient"]
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    codebook_cost: NonNegative
    entropy_bonus: NonNegative
    entropy_temperature: PositiveFloat
    gradient_estimator: EstimatorName
    diveq_variance: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold

    @property
    def revives_learned_codes(self) -> bool:
        """Whether unused codes are revived although only the decoder's gradient places codes."""
        return self.codebook_update == "gradient" and not self.codebook_cost and self.revival_threshold > 0

    @property
    def no_residual(self) -> str | None:
        """The reason why a residual quantizer cannot have these values inside; None if it can."""
        if self.distance == "cosine":
            return "with distance cosine, the residual of a unit vector is not a unit vector"
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
    """Takes the nearest code of a codebook (K, d).

    The loss is `commitment_cost` · mean((z − sg(c))²), where sg stops the gradient. A gradient codebook adds
    `codebook_cost` · mean((sg(z) − c)²). Means are over all elements.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of z.
        projection_dim: d, the width of a learned linear projection of z in which the codes lie (ViT-VQGAN, Yu et al.
            2022, section 3.2). None: no projection, and d is D.
        distance: "euclidean"; or "cosine", for which vectors and codes lie on the unit sphere.
        codebook_update: "ema": codes are running means of their vectors (appendix A.1). "gradient": codes are a
            parameter.
        ema_decay: the decay of the running counts and sums.
        ema_epsilon: added to each running count before a sum is divided by it. The running counts do not keep it.
        commitment_cost: weight of the loss term that pulls z to its code. It is the paper's β.
        codebook_cost: weight of the loss term that pulls the codes of a gradient codebook to z.
        entropy_bonus: weight in the loss of the mean entropy of soft assignments less the entropy of their mean. The
            soft assignment of z is softmax(−|z − c|²/`entropy_temperature`).
        entropy_temperature: see `entropy_bonus`.
        gradient_estimator: a key of gradients.GRADIENT_ESTIMATORS.
        diveq_variance: the variance of the noise of the estimator "diveq".
        start: "kmeans": codes begin at the centres of k-means on data. "normal": codes begin at N(0, 1).
        kmeans_rounds: the number of rounds of k-means.
        revival_threshold: a code used less than this fraction of its even share moves to a random vector. 0: never.
        inside_residual: see Quantizer.
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
        inside_residual: bool = False,
    ) -> None:
        super().__init__(codebook_size, inside_residual=inside_residual)
        width = projection_dim or codebook_dim
        self.dim, self.code_dim = codebook_dim, width
        self.project_in = nn.Linear(codebook_dim, width) if projection_dim else nn.Identity()
        self.project_out = nn.Linear(width, codebook_dim) if projection_dim else nn.Identity()
        self.on_sphere, self.learned = distance == "cosine", codebook_update == "gradient"
        self.ema_decay, self.ema_epsilon = ema_decay, ema_epsilon
        self.commitment_cost, self.codebook_cost = commitment_cost, codebook_cost
        self.entropy_bonus, self.entropy_temperature = entropy_bonus, entropy_temperature
        self.whole_batch = entropy_bonus > 0
        self.estimator = Estimator(gradient_estimator, diveq_variance)
        self.stochastic = self.estimator.stochastic
        self.start, self.kmeans_rounds = start, kmeans_rounds
        self.revival_threshold = revival_threshold
        codebook = self._placed(torch.randn(codebook_size, width))
        if self.learned:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # The loss with `codebook_cost` pulls a code to the mean of its vectors, where `re_estimate` can put it. Without
        # that loss the decoder alone places the codes, and no mean of vectors could replace them.
        self.re_estimated = () if self.learned and not codebook_cost else ("codebook",)
        # One per code: what a batch of `codebook_size` vectors, spread evenly, would count.
        self.register_buffer("ema_count", torch.ones(codebook_size))
        self.register_buffer("ema_sum", codebook.clone())
        self.gathered = GatheredVectors()

    def _placed(self, vectors: torch.Tensor) -> torch.Tensor:
        """Projects vectors (..., d) to the unit sphere if the distance is cosine."""
        return F.normalize(vectors, dim=-1) if self.on_sphere else vectors

    @property
    def codes(self) -> torch.Tensor:
        """The codes (K, d), normalised if the distance is cosine."""
        return self._placed(self.codebook) if self.learned else self.codebook

    def find(self, vectors: torch.Tensor) -> torch.Tensor:
        """The int64 indices (M,) of the codes nearest to vectors (M, d), by the quantizer's distance."""
        return best(vectors, self.codes) if self.on_sphere else nearest(vectors, self.codes)

    def to_target(self, z: torch.Tensor) -> torch.Tensor:
        """Projects z (..., D) to the width of the codes, and to the unit sphere if the distance is cosine."""
        return self._placed(self.project_in(z))

    def quantize(self, target: torch.Tensor, seeds: torch.Tensor | None = None) -> QuantizerOutput:
        """Takes the nearest code of each target (..., d)."""
        vectors = target.detach().reshape(-1, self.code_dim)
        indices, codes = self.find(vectors), self.codes
        code = F.embedding(indices, codes).view(target.shape)
        loss = self.commitment_cost * F.mse_loss(target, code.detach())
        if self.learned:
            loss = loss + self.codebook_cost * F.mse_loss(code, target.detach())
        if self.training:
            self.gathered.add(vectors, indices[:, None])
            if self.entropy_bonus:
                targets = target.reshape(-1, self.code_dim)
                loss = loss + self.entropy_bonus * unevenness(targets, codes, self.entropy_temperature)
        z_q = self.project_out(self.apply_estimator(target, code, seeds))
        indices = indices.view(*target.shape[:-1], 1)
        return QuantizerOutput(z_q, indices, loss, target.detach(), code.detach())

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        return self.project_out(F.embedding(indices.squeeze(-1), self.codes))

    def expect_calls(self, times: int) -> None:
        self.gathered.calls_per_pass *= times

    @torch.no_grad()
    def initialise_from_data(self, vectors: Callable[[], torch.Tensor], random: torch.Generator) -> None:
        """Moves the codes to the centres of k-means over the vectors, unless `start` is "normal"."""
        if self.start != "kmeans":
            return
        targets = self.to_target(vectors().float())
        centres, counts = kmeans(targets, self.codebook_size, self.kmeans_rounds, random)
        # A code without vectors counts as one that has one: its sum divided by its count must remain its place.
        counts = counts.clamp_min(1)
        self.codebook.copy_(self._placed(centres))
        self.ema_count.copy_(counts * self.codebook_size / len(targets))
        self.ema_sum.copy_(centres * self.ema_count[:, None])

    @torch.no_grad()
    def re_estimate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Moves every code to the mean of its vectors in all batches, unless only the decoder places codes."""
        if not self.re_estimated:
            return
        counts, sums = torch.zeros_like(self.ema_count), torch.zeros_like(self.ema_sum)
        for vectors in batches():
            targets = self.to_target(vectors.float())
            more = gather_statistics(targets, self.find(targets), self.codebook_size)
            counts += more[0]
            sums += more[1]
        self.move_to_means(counts, sums)

    def move_to_means(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Moves codes to sums (K, d) divided by counts (K,). A code with a count of 0 stays where it is.

        Counts need not be whole numbers: soft assignments give each vector to several codes in parts.
        """
        some = counts > torch.finfo(counts.dtype).tiny
        means = self._placed(sums / counts.masked_fill(~some, 1)[:, None])
        self.codebook.copy_(torch.where(some[:, None], means, self.codebook))
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])

    def discard(self) -> None:
        self.gathered.clear()

    @torch.no_grad()
    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        """Updates the running means and revives unused codes. Returns the `perplexity` of the global batch's codes.

        A vector may have been gathered with several codes. It then counts in equal parts for each.
        """
        vectors, indices = self.gathered.take()
        each = indices.shape[1]
        counts = sum_over_processes(torch.bincount(indices.flatten(), minlength=self.codebook_size).to(vectors.dtype))
        self.ema_count.lerp_(counts / each, 1 - self.ema_decay)
        if not self.learned:
            repeated = vectors.repeat_interleave(each, 0) if each > 1 else vectors
            sums = sum_over_processes(gather_statistics(repeated, indices.flatten(), self.codebook_size)[1])
            self.ema_sum.lerp_(sums / each, 1 - self.ema_decay)
            self.codebook.copy_(self._means())
        if self.revival_threshold:
            self._revive(vectors, generator("revive", seed, step, self.codebook_size))
        return {"perplexity": perplexity(counts)}

    def _means(self) -> torch.Tensor:
        """The running means (K, d). With cosine distance they are the directions of the running sums."""
        tiny = torch.finfo(self.ema_sum.dtype).tiny
        if self.on_sphere:
            norm = self.ema_sum.norm(dim=-1, keepdim=True)
            return torch.where(norm > SHORTEST, self.ema_sum / norm.clamp_min(tiny), self.codebook)
        mass = self.ema_count.sum()
        smoothed = (self.ema_count + self.ema_epsilon) / (mass + self.codebook_size * self.ema_epsilon) * mass
        # With ema_epsilon 0, a count of 0 would give a code of NaN, and every search would find that code.
        return self.ema_sum / smoothed.clamp_min(tiny)[:, None]

    def _revive(self, vectors: torch.Tensor, random: torch.Generator) -> None:
        """Moves each code used less than `revival_threshold` of its even share to a random vector of the global batch.

        Code, count and sum are reset together. If only the code were reset, the next running mean would undo it.
        """
        even_share = self.ema_count.sum() / self.codebook_size
        dead = self.ema_count < self.revival_threshold * even_share
        if not dead.any():
            return
        candidates = rows_of_global_batch(vectors, self.codebook_size, random)
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.ema_sum.copy_(torch.where(dead[:, None], candidates * even_share, self.ema_sum))
        self.ema_count.copy_(torch.where(dead, even_share, self.ema_count))
