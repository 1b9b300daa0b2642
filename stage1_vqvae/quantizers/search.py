"""Finding codes for vectors, and vectors for codes: exact search, statistics, k-means."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

GROUP = 64  # scores reduced at a time: torch's plain maximum is vectorised on CPU, its argmax is not
BLOCK = 2**22  # scores held at a time: 16 MB, near a core's cache
KMEANS_SEED_ROUNDS = 64
CENTRE_CODES = 256


@torch.no_grad()
def best(vectors: torch.Tensor, codebook: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Index (M,) of the code (K, D) with the highest score v·c + bias (K,) for each vector (M, D), in float32.

    Ties go to the lowest index. Works in blocks of rows, so that the M x K matrix of scores never exists.
    """
    if not len(vectors):
        return torch.empty(0, dtype=torch.int64, device=vectors.device)
    size, rows = len(codebook), max(16, min(1024, BLOCK // len(codebook)))
    if vectors.is_cuda:
        rows *= 16
    group = min(GROUP, size)
    missing = -size % group
    bias = codebook.new_zeros(size) if bias is None else bias
    # The bias as one more dimension: adding it to the product would be a second pass over the scores.
    scored = torch.cat([codebook, bias[:, None]], 1)
    scored = torch.cat([scored, F.pad(scored.new_full((missing, 1), -math.inf), (codebook.shape[1], 0))])
    transposed, order = scored.t().contiguous(), torch.arange(rows, device=vectors.device)
    scores = vectors.new_empty(min(rows, len(vectors)), size + missing)
    found = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for block, indices in zip(F.pad(vectors, (0, 1), value=1.0).split(rows), found.split(rows), strict=True):
        here = torch.mm(block, transposed, out=scores[: len(block)]).view(len(block), -1, group)
        top = here.amax(2).argmax(1)
        torch.add(top * group, here[order[: len(block)], top].argmax(1), out=indices)
    return found.clamp_max_(size - 1)  # a vector that is not finite could have found the padding


def centre_of(codebook: torch.Tensor) -> torch.Tensor:
    """What to subtract (D,) from codes (K, D) and vectors before their products: far from the origin, v·c − |c|²/2
    would lose the difference that decides.

    The median, since a mean follows a code that has run away; of some codes, and not of the vectors, since it must not
    depend on the batch.
    """
    return codebook.detach()[:: max(1, len(codebook) // CENTRE_CODES)].median(0).values


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index (M,) of the nearest code (K, D) of each vector (M, D), by Euclidean distance; ties go to the lowest."""
    centre = centre_of(codebook)
    codebook = codebook.detach() - centre
    return best(vectors - centre, codebook, codebook.square().sum(1).mul(-0.5))


def gather_statistics(vectors: torch.Tensor, indices: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the vectors (M, D) each code has (size,), and their sums (size, D)."""
    counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
    sums = torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return counts, sums.index_add_(0, indices, vectors)


def _seeds(vectors: torch.Tensor, size: int, random: torch.Generator) -> torch.Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): centres (size, D) drawn with odds that grow with the squared distance.

    Above 64 centres they are drawn a 64th at a time, as in k-means|| (Bahmani et al. 2012), so that the search costs
    one pass in all and not one a centre.
    """
    each = max(1, math.ceil(size / KMEANS_SEED_ROUNDS))
    centres = vectors[torch.randint(len(vectors), (1,), generator=random).to(vectors.device)]
    distances = (vectors - centres).square().sum(1)
    while len(centres) < size:
        count = min(each, size - len(centres))
        weights = distances.double().cpu()
        if not weights.sum() > 0:  # fewer distinct vectors than centres: the rest fall beside those there are
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
    """Lloyd's algorithm from k-means++ seeds; an empty cluster starts again at a random vector.

    Returns:
        centres (size, D), and how many vectors each has (size,).
    """
    centres = _seeds(vectors, size, random)
    for _ in range(rounds):
        counts, sums = gather_statistics(vectors, nearest(vectors, centres), size)
        again = vectors[torch.randint(len(vectors), (size,), generator=random).to(vectors.device)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], again)
    return centres, torch.bincount(nearest(vectors, centres), minlength=size).to(vectors.dtype)
