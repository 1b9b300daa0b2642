"""The few operations that processes do together. With one process each of them does nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

LONGEST_TEXT = 4096  # as long as a path may be


def world() -> tuple[int, int]:
    """This process's rank, from 0, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its sum over all processes, and return it.

    Args:
        tensor: any shape. It must be on the device that the processes exchange tensors on: the GPU, if they use one.
    """
    if world()[1] > 1 and tensor.numel():
        dist.all_reduce(tensor)
    return tensor


def same_on_all_processes(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite the tensors of every process with those of process 0."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def text_of_main(text: str, device: torch.device) -> str:
    """The text that process 0 gives, at most `LONGEST_TEXT` bytes of UTF-8. Every process receives it.

    Args:
        device: where tensors are that processes exchange.
    """
    if world()[1] == 1:
        return text
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > LONGEST_TEXT:
        raise ValueError(f"{len(data)} bytes of text")
    tensor = torch.tensor([*data, *[0] * (LONGEST_TEXT - len(data))], dtype=torch.uint8, device=device)
    dist.broadcast(tensor, src=0)
    return bytes(tensor.tolist()).rstrip(b"\0").decode("utf-8", "surrogateescape")


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest of the values that the processes give. Every process receives it."""
    if world()[1] == 1:
        return value
    return largest_of_each(torch.tensor([value], device=device))[0]


def largest_of_each(values: torch.Tensor) -> list[int]:
    """The elementwise maximum over all processes of their vectors (n,) of integers. Every process receives it.

    It is one exchange, and the only wait for the device that `values` is on.
    """
    if world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.tolist()


def total(values: list[float], device: torch.device) -> list[float]:
    """The sums of several numbers over all processes, computed in float64. Every process receives them."""
    if world()[1] == 1:
        return values
    return sum_over_processes(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def sums_over_blocks(
    names: Sequence[str],
    count: int,
    block: int,
    measure: Callable[[slice], Mapping[str, float]],
    device: torch.device,
) -> dict[str, float]:
    """Sums of figures over rows, the same on every process and for any number of processes.

    The rows are cut into blocks, which the processes share (`share`). The sums of all blocks are gathered and added at
    once, rounded a single time.

    Args:
        names: of the figures.
        count: number of rows.
        block: rows in a block. It must not depend on the machine.
        measure: the sum of each figure over a block of rows, given as a slice.
        device: where tensors are that processes exchange.
    """
    table = torch.zeros(-(-count // block), len(names), dtype=torch.float64)
    for rows in share(count, block):
        found = measure(rows)
        table[rows.start // block] = torch.tensor([found[name] for name in names], dtype=torch.float64)
    # A block is zero on all processes but one, so adding the tables rounds nothing.
    table = sum_over_processes(table.to(device)).cpu()
    return {name: math.fsum(column) for name, column in zip(names, table.T.tolist(), strict=True)}


def share(count: int, batch_size: int) -> list[slice]:
    """The batches of a split that this process handles, as slices of its rows.

    Batches are dealt out in turn: process r of n takes batches r, r + n, r + 2n, ... All processes together handle
    every row once.

    Args:
        count: number of rows of the split.
        batch_size: rows in a batch; the last batch may be smaller.
    """
    rank, size = world()
    starts = range(0, count, batch_size)
    return [slice(start, min(start + batch_size, count)) for start in starts[rank::size]]
