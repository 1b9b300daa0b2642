"""Which images of a split are measured, where not all are."""

from __future__ import annotations

import numpy as np
import torch

from tessera.randomness import generator


def fixed_choice(total: int, count: int | None) -> np.ndarray:
    """Which of the `total` images of a split are measured, int64 (n,) in ascending order.

    They are the first `count` of a random order that depends on `total` alone. So the same images are measured in every
    run of the same data, whatever the seeds, and a smaller choice is part of a larger one.

    Args:
        count: how many; None, or more than there are: all.
    """
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(torch.randperm(total, generator=generator("evaluate", total)).numpy()[:count])
