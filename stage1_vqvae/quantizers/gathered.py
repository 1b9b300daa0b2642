"""Vectors gathered over the forward passes of one optimizer step, in an order that does not depend on processes."""

from __future__ import annotations

import math

import torch

from tessera.distributed import sum_over_processes, world


def interleaved(parts: list[torch.Tensor]) -> torch.Tensor:
    """Puts rows of several tensors side by side: the first rows of all, then the next rows of all, and so on.

    Each tensor is cut into the same number of equal pieces, as many as possible. Tensors of equal length alternate row
    by row. A coarse and a fine level of the same images alternate with one row of the coarse level and several of the
    fine one. Both ways, the rows of one image stay together.

    Args:
        parts: tensors (M_i, ...), equal but for their length.

    Returns:
        (sum of M_i, ...).
    """
    pieces = math.gcd(*(len(part) for part in parts))
    return torch.cat([part.unflatten(0, (pieces, -1)) for part in parts], 1).flatten(0, 1)


class GatheredVectors:
    """Vectors with their codes, gathered over forward passes until an update takes them.

    A grouped or residual quantizer calls the quantizer inside it several times for the same images, and so does a model
    whose levels share a quantizer. The calls of one pass are interleaved, so that the vectors of one image stand
    together. Vectors then come in the same order whether a batch is whole, cut into micro-batches, or spread over
    processes.

    Attributes:
        calls_per_pass: number of calls of `add` in each forward pass of the model.
    """

    def __init__(self) -> None:
        self.calls_per_pass = 1
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Adds one call's vectors, float (M, d), and the codes of each, int64 (M, m)."""
        self._calls.append((vectors, indices))

    def clear(self) -> None:
        """Forgets all vectors."""
        self._calls.clear()

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all vectors, float (N, d), and their codes, int64 (N, m), in order, and forgets them."""
        starts = range(0, len(self._calls), self.calls_per_pass)
        passes = [self._calls[start : start + self.calls_per_pass] for start in starts]
        vectors, indices = (torch.cat([interleaved([c[part] for c in calls]) for calls in passes]) for part in (0, 1))
        self.clear()
        return vectors, indices


def rows_of_global_batch(rows: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Draws rows at random from the rows of all processes together.

    No row is drawn twice, unless there are fewer rows than `count`.

    Args:
        rows: float (N, d), this process's rows. N must be the same on every process.
        count: how many rows to draw.
        random: a CPU generator in the same state on every process.

    Returns:
        float (count, d), the same on every process.
    """
    rank, size = world()
    here, everywhere = len(rows), len(rows) * size
    if everywhere >= count:
        picks = torch.randperm(everywhere, generator=random)[:count]
    else:
        picks = torch.randint(everywhere, (count,), generator=random)
    own = (picks // here == rank).to(rows.device)
    # Every process contributes its own rows and zeros for the others' rows, so that the sum is complete.
    return sum_over_processes(torch.where(own[:, None], rows[(picks % here).to(rows.device)], 0.0))
