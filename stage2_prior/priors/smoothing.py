"""Smooths histograms of codes by coarser histograms.

There are four tiers: for each class and position, for each position, for each level and depth, and uniform. A histogram
in which a code has count m of a total M gives it the probability (m + a q) / (M + a), where q is the code's probability
in the next coarser tier.

The strength a of each tier is the one that predicts each training code best from all other training codes. No code
helps to predict itself, so no codes need to be held out, and the likelihood has a closed form in the counts.

Source: MacKay and Peto 1995, "A Hierarchical Dirichlet Language Model" (the smoothing); Ney, Essen and Kneser 1995,
"On the Estimation of 'Small' Probabilities by Leaving-One-Out" (the estimate).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

SEARCH = np.linspace(math.log(1e-3), math.log(1e9), 29)  # values of log a: from no smoothing to the coarser tier alone


def left_out(counts: np.ndarray, totals: np.ndarray | float, strength: float, parent: np.ndarray | float) -> np.ndarray:
    """The probability of a training code, for each cell of a histogram, predicted from all codes but itself.

    Args:
        counts: m, at least 1, the cell's count with the code itself.
        totals: M, the total of the cell's histogram.
        strength: a, above 0, in the unit of counts.
        parent: q, the code's probability in the coarser tier, from which the code was left out too.
    """
    return (counts - 1 + strength * parent) / (totals - 1 + strength)


def best_strength(counts: np.ndarray, totals: np.ndarray | float, parent: np.ndarray | float) -> float:
    """The strength that predicts the codes best. Arguments: see `left_out`, for the cells that are not empty."""

    def nats(log_strength: float) -> float:
        return -float((counts * np.log(left_out(counts, totals, math.exp(log_strength), parent))).sum())

    # The likelihood may have several maxima, so a coarse search comes first.
    near = int(np.argmin([nats(x) for x in SEARCH]))
    bounds = SEARCH[max(near - 1, 0)], SEARCH[min(near + 1, len(SEARCH) - 1)]
    return math.exp(minimize_scalar(nats, bounds=bounds, method="bounded").x)


def smooth_group(counts: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Smooths the histograms of positions that share a codebook.

    Args:
        counts: (classes + 1, positions, K). The last row counts the codes of all classes.

    Returns:
        probabilities, float64 of the same shape, of which the last row is the null label's; and the strengths of the
        tiers level, position and class.
    """
    by_class, by_position = counts[:-1], counts[-1]
    level, size = by_position.sum(0), by_position.shape[-1]
    if not level.any():
        return np.full(counts.shape, 1 / size), (1.0, 1.0, 1.0)

    seen = level > 0
    a_level = best_strength(level[seen], level.sum(), 1 / size)
    q_level = (level + a_level / size) / (level.sum() + a_level)
    loo_level = np.zeros_like(q_level)
    loo_level[seen] = left_out(level[seen], level.sum(), a_level, 1 / size)

    n, k = np.nonzero(by_position)
    totals = by_position.sum(-1)
    a_position = best_strength(by_position[n, k], totals[n], loo_level[k])
    q_position = (by_position + a_position * q_level) / (totals[:, None] + a_position)
    loo_position = np.zeros_like(q_position)
    loo_position[n, k] = left_out(by_position[n, k], totals[n], a_position, loo_level[k])

    y, n, k = np.nonzero(by_class)
    if not len(y):
        return np.broadcast_to(q_position, counts.shape), (a_level, a_position, 1.0)
    totals = by_class.sum(-1)
    a_class = best_strength(by_class[y, n, k], totals[y, n], loo_position[n, k])
    q_class = (by_class + a_class * q_position) / (totals[..., None] + a_class)
    return np.concatenate([q_class, q_position[None]]), (a_level, a_position, a_class)


def smooth(counts: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
    """Log-probabilities, float32 (classes + 1, n, V), from counts; -inf beyond a token's codebook.

    Args:
        counts: int64 (classes + 1, n, V). The last row counts the codes of all classes.
        places: int64 (n, 4), the level, row, column and depth of each token.
        sizes: (n,), each token's codebook size K.
    """
    table = torch.full(counts.shape, float("-inf"))
    groups = places[:, [0, 3]]  # level and depth
    for group in torch.unique(groups, dim=0):
        where = (groups == group).all(1)
        size = int(sizes[where][0])
        probabilities, _ = smooth_group(counts[:, where, :size].double().numpy())
        table[:, where, :size] = torch.from_numpy(np.log(probabilities)).float()
    return table
