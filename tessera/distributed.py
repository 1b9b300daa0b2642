"""The few collective operations that are needed, as no-ops on one process."""

from __future__ import annotations

from collections.abc import Iterable

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


def same_on_all_processes(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest of the processes' values; the same answer everywhere."""
    if world()[1] == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def total(values: list[float], device: torch.device) -> list[float]:
    """Add up float64 numbers over all processes."""
    if world()[1] == 1:
        return values
    return sum_over_processes(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def share(count: int, batch_size: int) -> list[slice]:
    """The batches of a split that this process handles: every world-th, so that together they cover it once."""
    rank, size = world()
    starts = range(0, count, batch_size)
    return [slice(start, min(start + batch_size, count)) for start in starts[rank::size]]


def batch_share(batch_size: int) -> int:
    """One process's part of a global batch: what it can hold, and so how much it evaluates at a time."""
    return max(1, batch_size // world()[1])
