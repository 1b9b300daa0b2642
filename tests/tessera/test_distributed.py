"""What processes do together, with one process after the other in the place of several at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from tessera import distributed
from tessera.distributed import share, sums_over_blocks

CPU = torch.device("cpu")
VALUES = np.random.default_rng(0).normal(size=(103, 2)) * 10.0 ** np.random.default_rng(1).integers(-9, 9, (103, 2))


def measured(rows: slice) -> Mapping[str, float]:
    return dict(zip(("first", "second"), VALUES[rows].sum(0).tolist(), strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_sums_over_blocks_are_the_same_bits_whatever_the_processes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    tables: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "sum_over_processes", lambda tensor: tables.append(tensor) or tensor)
        for rank in range(size):
            patch.setattr(distributed, "world", lambda rank=rank: (rank, size))
            sums_over_blocks(["first", "second"], len(VALUES), 10, measured, CPU)
    monkeypatch.setattr(distributed, "sum_over_processes", lambda tensor: torch.stack(tables).sum(0))
    found = sums_over_blocks(["first", "second"], len(VALUES), 10, measured, CPU)
    blocks = [VALUES[start : start + 10].sum(0) for start in range(0, 103, 10)]
    assert found == {"first": math.fsum(b[0] for b in blocks), "second": math.fsum(b[1] for b in blocks)}


def test_no_rows_have_sums_of_zero() -> None:
    assert sums_over_blocks(["first"], 0, 10, measured, CPU) == {"first": 0.0}


@pytest.mark.parametrize(("count", "batch", "size"), [(103, 10, 3), (5, 10, 3), (0, 4, 2), (12, 4, 3)])
def test_processes_share_every_row_once(monkeypatch: pytest.MonkeyPatch, count: int, batch: int, size: int) -> None:
    rows = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: (rank, size))
        rows += [row for part in share(count, batch) for row in range(part.start, part.stop)]
    assert sorted(rows) == list(range(count))
