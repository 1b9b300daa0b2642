"""The few collective operations that are needed, as no-ops on one process."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist

from tessera.errors import UserError


def world() -> tuple[int, int]:
    """This process's rank, and how many processes there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def set_threads(threads: int | None) -> None:
    """Use this many threads, or (None) this process's share of the cores it may run on.

    A launcher may have left only one: `accelerate launch` does on a machine without a GPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def exact_float32() -> None:
    """Let fp32 mean fp32 on a GPU: torch's default rounds the inputs of convolutions to 10 bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def one_process(threads: int | None, module: str) -> None:
    """Threads and fp32 as everywhere; refuses to be one of several processes, which would all write the same files.

    Raises:
        UserError: a launcher started several processes.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(f"{module}: runs in one process, was started in {processes}; start it as `python -m {module}`")
    set_threads(threads)
    exact_float32()


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
