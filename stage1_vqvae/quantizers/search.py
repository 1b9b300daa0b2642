"""Exact search for the best code of each vector, sums of vectors per code, and k-means."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# Scores are searched in groups of this size: first for the group with the largest maximum, then within it. On a CPU,
# torch's maximum is vectorised and its argmax is not, so that most of the work is done by the maximum.
GROUP = 64
BLOCK = 2**22  # scores computed at a time. They take 16 MB, which is about the size of a core's cache.
KMEANS_SEED_ROUNDS = 64  # the first centres of k-means are drawn in at most this many rounds
CENTRE_CODES = 256  # codes from which `centre_of` takes the median


@torch.no_grad()
def best(vectors: torch.Tensor, codebook: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Finds the code with the highest score v·c + bias for each vector.

    The search works on blocks of rows. The whole matrix of M x K scores never exists.

    Args:
        vectors: float32 (M, D).
        codebook: float32 (K, D).
        bias: float32 (K,), or None for zeros.

    Returns:
        int64 (M,), indices of codes. Among equal scores, the lowest index is taken.
    """
    if not len(vectors):
        return torch.empty(0, dtype=torch.int64, device=vectors.device)
    size, rows = len(codebook), max(16, min(1024, BLOCK // len(codebook)))
    if vectors.is_cuda:
        rows *= 16
    group = min(GROUP, size)
    missing = -size % group
    bias = codebook.new_zeros(size) if bias is None else bias
    # The bias is one more dimension of the product, because adding it afterwards would read all scores once more.
    # Codes that fill up the last group get a bias of −∞.
    scored = torch.cat([codebook, bias[:, None]], 1)
    scored = torch.cat([scored, F.pad(scored.new_full((missing, 1), -math.inf), (codebook.shape[1], 0))])
    transposed, order = scored.t().contiguous(), torch.arange(rows, device=vectors.device)
    scores = vectors.new_empty(min(rows, len(vectors)), size + missing)
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for block, indices in zip(F.pad(vectors, (0, 1), value=1.0).split(rows), found.split(rows), strict=True):
        here = torch.mm(block, transposed, out=scores[: len(block)]).view(len(block), -1, group)
        top = here.amax(2).argmax(1)
        torch.add(top * group, here[order[: len(block)], top].argmax(1), out=indices)
    return found.clamp_max_(size - 1)  # a vector that is not finite may have found one of the codes that fill up


def centre_of(codebook: torch.Tensor) -> torch.Tensor:
    """A point to subtract from codes and vectors before their products are taken.

    Far from the origin, v·c − |c|²/2 is the difference of two large numbers, and rounding would decide which code is
    nearest. The point is the median of some codes. A mean would follow a single code that has run away. The vectors
    have no part in it, because the code of a vector must not depend on the rest of its batch.

    Args:
        codebook: float (K, D).

    Returns:
        float (D,) without gradient.
    """
    return codebook.detach()[:: max(1, len(codebook) // CENTRE_CODES)].median(0).values


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Finds the nearest code of each vector, by Euclidean distance.

    Args:
        vectors: float32 (M, D).
        codebook: float32 (K, D).

    Returns:
        int64 (M,), indices of codes. Among equal distances, the lowest index is taken.
    """
    centre = centre_of(codebook)
    codebook = codebook.detach() - centre
    return best(vectors - centre, codebook, codebook.square().sum(1).mul(-0.5))


def gather_statistics(vectors: torch.Tensor, indices: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and adds up the vectors of each code.

    Args:
        vectors: float (M, D).
        indices: int64 (M,), the code of each vector.
        size: K, the number of codes.

    Returns:
        counts (K,) and sums (K, D), in the dtype of the vectors.
    """
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    sums = torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return counts, sums.index_add_(0, indices, vectors)


def _seeds(vectors: torch.Tensor, size: int, random: torch.Generator) -> torch.Tensor:
    """Draws the first centres of k-means: each vector's chance is its squared distance to the centres before it.

    Source: Arthur and Vassilvitskii 2007, "k-means++". For more than KMEANS_SEED_ROUNDS centres, several are drawn in
    each round, as in Bahmani et al. 2012, "Scalable k-means++". All rounds together then cost one search over all
    centres, instead of one search for each centre.

    Args:
        vectors: float (M, D).
        size: the number of centres.
        random: a CPU generator.

    Returns:
        float (size, D).
    """
    each = max(1, math.ceil(size / KMEANS_SEED_ROUNDS))
    centres = vectors[torch.randint(len(vectors), (1,), generator=random).to(vectors.device)]
    distances = (vectors - centres).square().sum(1)
    while len(centres) < size:
        count = min(each, size - len(centres))
        weights = distances.double().cpu()
        if not weights.sum() > 0:  # every distinct vector is a centre already: further centres lie close to vectors
            picks = torch.randint(len(vectors), (count,), generator=random).to(vectors.device)
            jitter = torch.randn(count, vectors.shape[1], generator=random).to(vectors)
            new = vectors[picks] + jitter * vectors.std().nan_to_num().clamp_min(1e-3) * 1e-2
        else:
            uniforms = torch.rand(count, generator=random, dtype=torch.float64) * weights.sum()
            picks = torch.searchsorted(weights.cumsum(0), uniforms, right=True).clamp_max(len(vectors) - 1)
            new = vectors[picks.to(vectors.device)]
        found = new[nearest(vectors, new)]
        distances = torch.minimum(distances, (vectors - found).square().sum(1))
        centres = torch.cat([centres, new])
    return centres


@torch.no_grad()
def kmeans(vectors: torch.Tensor, size: int, rounds: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters vectors by Lloyd's algorithm, starting from k-means++ centres.

    A cluster that gets no vector starts again at a random vector.

    Args:
        vectors: float (M, D).
        size: the number of clusters.
        rounds: how often the centres are moved to the means of their vectors.
        random: a CPU generator.

    Returns:
        the centres (size, D), and the number of vectors of each (size,), in the dtype of the vectors.
    """
    centres = _seeds(vectors, size, random)
    for _ in range(rounds):
        counts, sums = gather_statistics(vectors, nearest(vectors, centres), size)
        again = vectors[torch.randint(len(vectors), (size,), generator=random).to(vectors.device)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], again)
    return centres, torch.bincount(nearest(vectors, centres), minlength=size).to(vectors.dtype)
