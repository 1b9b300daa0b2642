"""The few collective operations that are needed, as no-ops on one process."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """This process's rank, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over all processes, in place; it must lie on the backend's device."""
    if world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def total(values: list[float], device: torch.device) -> list[float]:
    """Add up float64 numbers over all processes. One process never sends them to a device without float64."""
    if world()[1] == 1:
        return values
    return sum_over_processes(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def share(count: int, batch_size: int) -> list[slice]:
    """The batches of a split that this process handles: every world-th, so that together they cover it once."""
    rank, size = world()
    starts = range(0, count, batch_size)
    return [slice(start, min(start + batch_size, count)) for start in starts[rank::size]]
