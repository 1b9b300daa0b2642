"""Micro-batches: the loss, the gradient and the codebook are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.errors import UserError
from tessera.training import steps
from tessera.training.steps import Stepper, micro_batches
from tessera.training.task import Batch, Task


class Squares(Task):
    section, criterion = "toy.training", "error"

    def __init__(self, params: Any, whole_batch: str = "") -> None:
        torch.manual_seed(0)
        self.params, self.model, self.whole_batch = params, nn.Linear(3, 1), whole_batch
        self.sizes: list[int] = []

    def batch(self, step: int, rows: slice) -> Batch:
        # A generator of its own: batches are made in a thread, beside which others draw.
        return {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(step))[rows]}

    def loss(self, name: str, model: nn.Module, batch: Batch) -> Any:
        self.sizes.append(len(batch["x"]))
        error = model(batch["x"]).square().mean()
        return error, {"rows": torch.tensor(float(len(batch["x"])))}

    def validate(self) -> dict[str, float]:
        return {"error": self.model.weight.square().sum().item()}


def test_pieces_cover_all_rows_once() -> None:
    assert micro_batches(8, None) == [slice(0, 8)]
    assert micro_batches(8, 3) == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert micro_batches(8, 100) == [slice(0, 8)]


@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_a_training_in_pieces_ends_as_one_of_whole_batches(trained: Callable, training: Callable, pieces: int) -> None:
    params = training(steps=4)
    whole = trained(Squares(params), "whole")
    cut = trained(Squares(params), "cut", micro_batch=pieces)
    for one, other in zip(whole.task.model.parameters(), cut.task.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert set(cut.task.sizes[1:]) == {1: {1}, 3: {3, 2}, 8: {8}}[pieces]
    rows = [[row["loss"] for row in run.progress.train] for run in (whole, cut)]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_a_loss_of_the_whole_batch_is_refused_in_pieces(trained: Callable, training: Callable) -> None:
    with pytest.raises(
        UserError, match=r"runtime\.micro_batch: 3: the loss looks at a whole batch; set looks to false; or set micro_"
    ):
        trained(Squares(training(), whole_batch="the loss looks at a whole batch; set looks to false"), micro_batch=3)
    with pytest.raises(UserError, match=r"^runtime\.log_every: 1: with .*; runtime\.micro_batch: 3: a loss"):
        trained(Squares(training(steps=10**7), whole_batch="a loss of the whole"), micro_batch=3, log_every=1)


class Reads(TorchDispatchMode):
    """Counts the scalars that Python reads from tensors: on a GPU each waits for all that was asked of it before."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_looks_once_at_what_it_has_computed(
    trained: Callable, training: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, take, reads = [], Stepper.take, Reads()

    def watched(*arguments: Any) -> int:
        with reads:
            return take(*arguments)

    look = steps.largest_of_each
    monkeypatch.setattr(steps, "largest_of_each", lambda values: looks.append(len(values)) or look(values))
    monkeypatch.setattr(Stepper, "take", watched)
    trained(Squares(training(steps=5)), log_every=1000)
    assert (reads.count, looks) == (0, [2] * 5)
