"""Distances between two sets of feature vectors: Fréchet, KID, precision, recall, density, coverage. All in float64.

A set is a tensor (n, F), one row an image. `Moments` holds what the Fréchet distance needs of a set of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.distributed import sum_over_processes
from tessera.randomness import generator

RESAMPLES = 40  # of a bootstrap
RESAMPLED = 1000  # vectors of a set that a bootstrap draws from, at most
ROWS, VALUES = 512, 2**19  # of a matrix of distances or kernels, at a time: rows, and values of all of them
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # as the papers have them
NORMAL = 1.96  # standard errors to each side that hold 95%


class Moments:
    """The number of vectors of a set, their sum and the sum of their outer products, added up in float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._root: Tensor | None = None

    def add(self, vectors: Tensor) -> Moments:
        vectors = vectors.double()
        self.count += len(vectors)
        self.total += vectors.sum(0)
        self.outer += vectors.T @ vectors
        self._root = None
        return self

    def merge(self) -> None:
        """Replace the sums by those over all processes."""
        for tensor in (self.count, self.total, self.outer):
            sum_over_processes(tensor)
        self._root = None

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (F, F); at least two vectors are needed."""
        return (self.outer - torch.outer(self.total, self.mean)) / (self.count - 1)

    @property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, which is kept. Eigenvalues that only rounding makes are 0."""
        if self._root is None:
            covariance = self.covariance
            values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
            least = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
            self._root = (vectors * values.where(values > least, 0.0).sqrt()) @ vectors.T
        return self._root


def frechet_distance(one: Moments, other: Moments) -> float:
    """|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½), the squared 2-Wasserstein distance of two Gaussians, at least 0.

    Source: Heusel et al. 2017, equation 6. It is the FID where the vectors are Inception's.
    """
    # The trace of the root of the product is the sum of the singular values of the product of the roots.
    cross = torch.linalg.svdvals(one.root @ other.root).sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, (apart + one.covariance.trace() + other.covariance.trace() - 2 * cross).item())


def frechet_of_vectors(one: Tensor, other: Tensor) -> float:
    """The Fréchet distance of two sets of at least two vectors (n, F), the cheaper way for few of them."""
    if min(len(one), len(other)) > one.shape[1]:
        width = one.shape[1]
        return frechet_distance(Moments(width, one.device).add(one), Moments(width, one.device).add(other))
    first, second = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (one.double(), other.double()))
    cross = torch.linalg.svdvals(first @ second.T).sum()
    apart = (one.double().mean(0) - other.double().mean(0)).square().sum()
    return max(0.0, (apart + first.square().sum() + second.square().sum() - 2 * cross).item())


def _pieces(count: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix (count, columns) of float64, so many at a time that more images take no more memory."""
    rows = max(1, min(ROWS, VALUES // max(1, columns)))
    for start in range(0, count, rows):
        yield slice(start, start + rows)


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _kernel_means(one: Tensor, other: Tensor, own: Tensor, others: Tensor, paired: bool) -> Tensor:
    """The mean kernel over pairs of vectors, for each row of weights.

    Args:
        own, others: weights (R, n) and (R, m) of the vectors.
        paired: whether vectors of the same number, of which one tells the other, are no pair.
    """
    total, pairs = own.new_zeros(len(own)), own.sum(1) * others.sum(1)
    for rows in _pieces(len(one), len(other)):
        total += ((own[:, rows] @ _kernel(one[rows], other)) * others).sum(1)
    if paired:
        total -= (own * others) @ ((one * other).sum(1) / one.shape[1] + 1) ** 3
        pairs = pairs - (own * others).sum(1)
    return total / pairs


def kernel_distances(one: Tensor, other: Tensor, own: Tensor, others: Tensor, paired: bool = False) -> Tensor:
    """`kernel_distance` for each row of weights (R, n) and (R, m) of the vectors, float64 (R,)."""
    one, other = one.double(), other.double()
    return (
        _kernel_means(one, one, own, own, True)
        + _kernel_means(other, other, others, others, True)
        - 2 * _kernel_means(one, other, own, others, paired)
    )


def kernel_distance(one: Tensor, other: Tensor, paired: bool = False) -> float:
    """KID: the unbiased squared maximum mean discrepancy under the kernel (x·y / F + 1)³. It may be below 0.

    Source: Bińkowski et al. 2018, section 4. All vectors are one subset.

    Args:
        paired: whether row i of both sets belongs together, as an image and its reconstruction do. Such two are alike
            whatever the distributions, so they are left out (Gretton et al. 2012, lemma 6).
    """
    weights = [one.new_ones(1, len(x), dtype=torch.float64) for x in (one, other)]
    return kernel_distances(one, other, *weights, paired).item()


def _distances(one: Tensor, other: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances of some rows of one set at a time to all of another."""
    for rows in _pieces(len(one), len(other)):
        yield rows, torch.cdist(one[rows], other, compute_mode="use_mm_for_euclid_dist")


def _radii(vectors: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """The distance of each vector to its k-th nearest other one, (n,) for each k."""
    found: list[list[Tensor]] = [[] for _ in neighbours]
    for _, distances in _distances(vectors, vectors):
        nearest = distances.topk(max(neighbours) + 1, largest=False).values  # the nearest of all is itself
        for radii, k in zip(found, neighbours, strict=True):
            radii.append(nearest[:, k])
    return [torch.cat(radii) for radii in found]


def neighbour_figures(real: Tensor, shown: Tensor) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Neighbourhoods are balls around each vector that reach to its 3rd nearest neighbour in its own set for precision and
    recall, and to its 5th for density and coverage.

    Args:
        real, shown: sets of more than 5 vectors each; all but recall and precision of sets of different sizes compare
            only with sets of these sizes.
    """
    real, shown = real.double(), shown.double()
    ks = (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS)
    near, wide = _radii(real, ks)
    (own,) = _radii(shown, ks[:1])
    inside = torch.zeros(len(shown), dtype=torch.bool, device=real.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered, balls = recalled.clone(), 0
    for rows, distances in _distances(real, shown):
        inside |= (distances <= near[rows, None]).any(0)
        recalled[rows] = (distances <= own).any(1)
        covered[rows] = distances.min(1).values < wide[rows]
        balls += (distances < wide[rows, None]).sum().item()
    return {
        "precision": inside.double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": balls / (DENSITY_NEIGHBOURS * len(shown)),
        "coverage": covered.double().mean().item(),
    }


@dataclass(frozen=True)
class Spread:
    """The standard errors of two distances."""

    frechet_distance: float
    kid: float


def bootstrap(real: Tensor, shown: Tensor, paired: bool, images: int | None = None) -> Spread:
    """The standard errors of both distances, by drawing images again with replacement.

    A bootstrap's own distances are too large, for repeated images make a set smaller. Their spread is what counts.

    Args:
        real, shown: at least two vectors each, in no order of importance. At most `RESAMPLED` of each are drawn from;
            the error of larger sets is smaller by the root of their size.
        paired: see `kernel_distance`. Two vectors that belong together are drawn together.
        images: of how many images the smaller set is whose Fréchet distance has the standard error. The vectors are a
            random choice of them. None: the vectors are all there are.
    """
    fewer = min(len(real), len(shown))
    of_kid, of_frechet = (math.sqrt(min(fewer, RESAMPLED) / count) for count in (fewer, images or fewer))
    random = generator("bootstrap", len(real), len(shown))
    parts = [x[torch.randperm(len(x), generator=random)[:RESAMPLED].to(x.device)] for x in (real, shown)]
    if paired:
        rows = torch.randperm(len(real), generator=random)[:RESAMPLED].to(real.device)
        parts = [real[rows], shown[rows]]
    draws = [torch.randint(len(part), (RESAMPLES, len(part)), generator=random) for part in parts]
    draws = [draws[0], draws[0]] if paired else draws
    times = [torch.stack([row.bincount(minlength=len(row)) for row in draw]) for draw in draws]
    kids = kernel_distances(*parts, *(weights.double().to(real.device) for weights in times), paired)
    # Of few images one alone may be drawn, again and again. It has no pair, and so no KID.
    kids = kids[torch.stack([(weights > 0).sum(1) > 1 for weights in times]).all(0).to(kids.device)]
    distances = [
        frechet_of_vectors(*(part[row.to(real.device)] for part, row in zip(parts, rows, strict=True)))
        for rows in zip(*draws, strict=True)
    ]
    return Spread(torch.tensor(distances, dtype=torch.float64).std().item() * of_frechet, kids.std().item() * of_kid)


def interval(value: float, error: float, least: float = -math.inf) -> list[float]:
    """The bounds of the interval that holds the figure in 95% of repetitions, by the normal approximation."""
    return [max(least, value - NORMAL * error), value + NORMAL * error]


def inception_score(probabilities: Tensor, entropies: Tensor, counts: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over parts of exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016).

    Args:
        probabilities: the sum of p(y|x) over the images of each part, (parts, classes).
        entropies: the sum of Σ p log p over the images of each part, (parts,).
        counts: the images of each part, (parts,); parts without any are left out.
    """
    there = counts > 0
    probabilities, entropies, counts = probabilities[there], entropies[there], counts[there]
    means = probabilities / counts[:, None]
    scores = (entropies / counts - torch.special.xlogy(means, means).sum(1)).exp()
    return scores.mean().item(), scores.std(correction=0).item()
