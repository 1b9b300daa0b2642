"""How often codes are used, and how evenly."""

from __future__ import annotations

import pytest
import torch

from stage1_vqvae.quantizers import output
from stage1_vqvae.quantizers.output import perplexity, used_counts


@pytest.mark.parametrize("table", [0, 2**18])
def test_perplexity_of_counts_is_exp_of_the_entropy_with_and_without_a_table(monkeypatch, table: int) -> None:
    monkeypatch.setattr(output, "TABLE", table)
    indices = torch.tensor([3, 3, 3, 0, 9, 9])
    shares = torch.tensor([3, 1, 2], dtype=torch.float64) / 6
    expected = (-(shares * shares.log()).sum()).exp()
    torch.testing.assert_close(perplexity(used_counts(indices, 12)).double(), expected)


@pytest.mark.parametrize("table", [0, 2**18])
def test_counts_are_those_of_all_processes(monkeypatch, table: int) -> None:
    """Two processes run one after the other. What the first one sends is added to what the second one has."""
    monkeypatch.setattr(output, "TABLE", table)
    batches, sent = [torch.tensor([1, 1, 2]), torch.tensor([2, 5, 5])], []
    for rank in (0, 1):
        monkeypatch.setattr(output, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(output, "sum_over_processes", lambda tensor: sent.append(tensor.clone()) or tensor)
        used_counts(batches[rank], 8)
    monkeypatch.setattr(output, "sum_over_processes", lambda tensor: sent[0] + sent[1])
    counts = used_counts(batches[1], 8)
    assert sorted(counts[counts > 0].tolist()) == [2, 2, 2]
