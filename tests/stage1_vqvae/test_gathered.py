"""Gathered vectors come in one order, however the batch is cut."""

from __future__ import annotations

import pytest
import torch

from stage1_vqvae.quantizers import gathered
from stage1_vqvae.quantizers.gathered import GatheredVectors, interleaved, rows_of_global_batch


def test_tensors_of_equal_length_alternate_row_by_row() -> None:
    first, second = torch.arange(3), torch.arange(10, 13)
    assert interleaved([first, second]).tolist() == [0, 10, 1, 11, 2, 12]
    assert torch.equal(interleaved([first]), first)


def test_a_coarse_and_a_fine_level_alternate_image_by_image() -> None:
    coarse, fine = torch.tensor([0, 1]), torch.arange(10, 18)
    assert interleaved([coarse, fine]).tolist() == [0, 10, 11, 12, 13, 1, 14, 15, 16, 17]


@pytest.mark.parametrize("positions", [(1, 4), (4, 9), (1, 4, 16), (6, 6)])
def test_a_batch_in_parts_has_the_order_of_the_whole_batch(positions: tuple[int, ...]) -> None:
    """Parts end to end, which are micro-batches or the processes' shares: each holds whole images."""
    levels = [torch.arange(6 * count).view(6, count) + 1000 * level for level, count in enumerate(positions)]
    whole, parts = GatheredVectors(), GatheredVectors()
    whole.calls_per_pass = parts.calls_per_pass = len(positions)
    for level in levels:
        whole.add(level.flatten()[:, None], level.flatten()[:, None] * 2)
    for images in (slice(0, 1), slice(1, 4), slice(4, 6)):
        for level in levels:
            parts.add(level[images].flatten()[:, None], level[images].flatten()[:, None] * 2)
    assert len(whole) == len(positions) and len(parts) == 3 * len(positions)
    (vectors, codes), (other_vectors, other_codes) = whole.take(), parts.take()
    assert torch.equal(vectors, other_vectors) and torch.equal(codes, other_codes)
    assert torch.equal(codes, 2 * vectors) and not whole and not parts


@pytest.mark.parametrize("count", [3, 20])
def test_rows_are_drawn_from_all_processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Two processes, one after the other. Each contributes its own rows, and the sum is what one process draws."""
    rows = torch.arange(1.0, 9.0)[:, None].expand(8, 2)
    alone = rows_of_global_batch(rows, count, torch.Generator().manual_seed(0))
    assert len(alone) == count and (count > 8 or len(alone.unique(dim=0)) == count)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(gathered, "world", lambda rank=rank: (rank, 2))
        half = rows[4 * rank : 4 * rank + 4]
        parts.append(rows_of_global_batch(half, count, torch.Generator().manual_seed(0)))
    assert torch.equal(sum(parts), alone)
