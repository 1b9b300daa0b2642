"""Smoothed histograms: class and position -> position -> level and depth -> uniform, by strengths that the data choose.

A histogram with counts m of M, and its parent's probability q, gives (m + a q) / (M + a). The strength a is the one
under which each training code is best predicted from all the others (leave-one-out), at every tier: no code predicts
itself, so nothing is held out, and the closed form needs only the counts.

Source: MacKay and Peto 1995, "A Hierarchical Dirichlet Language Model" (the smoothing); Ney, Essen and Kneser 1995,
"On the Estimation of 'Small' Probabilities by Leaving-One-Out" (the estimate).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

SEARCH = np.linspace(math.log(1e-3), math.log(1e9), 29)  # of log a: from no smoothing to the parent alone


def left_out(counts: np.ndarray, totals: np.ndarray | float, strength: float, parent: np.ndarray | float) -> np.ndarray:
    """Probability of a code of each cell, predicted from all codes but itself.

    Args:
        counts: m >= 1 (the cell's own count, the code included).
        totals: M, the count of the cell's whole histogram.
        strength: a > 0, in codes.
        parent: the parent's probability of that code, it left out there too.
    """
    return (counts - 1 + strength * parent) / (totals - 1 + strength)


def best_strength(counts: np.ndarray, totals: np.ndarray | float, parent: np.ndarray | float) -> float:
    """The strength with the highest leave-one-out likelihood; arguments as in `left_out`, non-empty cells only."""

    def nats(log_strength: float) -> float:
        return -float((counts * np.log(left_out(counts, totals, math.exp(log_strength), parent))).sum())

    # The likelihood may have several tops: a coarse search first, then the top itself.
    near = int(np.argmin([nats(x) for x in SEARCH]))
    bounds = SEARCH[max(near - 1, 0)], SEARCH[min(near + 1, len(SEARCH) - 1)]
    return math.exp(minimize_scalar(nats, bounds=bounds, method="bounded").x)


def smooth_group(counts: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Smooth the histograms of positions that share a codebook.

    Args:
        counts: (classes + 1, positions, K); the last row is over all codes, whatever their class.

    Returns:
        probabilities of the same shape, float64, the last row for the null label; and the strengths of level,
        position and class.
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
    """int64 counts (classes + 1, n, V), the last row over all codes, to float32 log-probabilities, -inf beyond K.

    Args:
        places: (n, 4), each token's level, row, column and depth; sizes: (n,), its K.
    """
    table = torch.full(counts.shape, float("-inf"))
    groups = places[:, [0, 3]]  # level and depth
    for group in torch.unique(groups, dim=0):
        where = (groups == group).all(1)
        size = int(sizes[where][0])
        probabilities, _ = smooth_group(counts[:, where, :size].double().numpy())
        table[:, where, :size] = torch.from_numpy(np.log(probabilities)).float()
    return table
