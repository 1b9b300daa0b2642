"""A model that is built may be as large as its weights allow, and no larger, however its tensors are made."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tessera.artifacts.bounded import ONE_TENSOR, no_larger_than

HUGE = 4 * ONE_TENSOR
MADE: list[Callable[[int], torch.Tensor]] = [
    lambda n: torch.empty(n),
    lambda n: torch.zeros(2, n),
    lambda n: torch.ones((n, 1)),
    lambda n: torch.randn(size=(n,)),
    lambda n: torch.full((n,), 1.0),
    lambda n: torch.full(size=(n,), fill_value=1.0),
    lambda n: torch.arange(n),
    lambda n: torch.arange(3, n + 3),
    lambda n: torch.arange(0, 2 * n, 2),
    lambda n: torch.arange(start=0, end=n),
    lambda n: torch.zeros(1).repeat(n),
    lambda n: torch.cartesian_prod(torch.arange(n // 4), torch.arange(8)),
]


@pytest.mark.parametrize("make", MADE, ids=range(len(MADE)))
def test_a_small_tensor_is_made_as_ever_and_a_huge_one_is_refused(make: Callable[[int], torch.Tensor]) -> None:
    with no_larger_than({}):
        assert make(8).shape == make(8).shape and make(8).numel() >= 8
        with pytest.raises(ValueError, match="a larger model than its weights"):
            make(HUGE)


def test_buffers_and_parameters_are_counted_together_and_in_one_thread_alone() -> None:
    small = {"weight": torch.zeros(2, 2)}
    with no_larger_than(small):
        nn.Linear(2, 2)
        made: list[nn.Module] = []
        other = threading.Thread(target=lambda: made.append(nn.Linear(1100, 1100)))
        other.start()
        other.join()
        assert len(made) == 1
        with pytest.raises(ValueError, match="a larger model than its weights"):
            nn.Linear(1100, 1100)
    module = nn.Module()
    with no_larger_than(small), pytest.raises(ValueError, match="a larger model than its weights"):
        for number in range(3000):
            module.register_buffer(f"part_{number}", torch.zeros(1))
    nn.Linear(1100, 1100)  # nothing is counted any more
