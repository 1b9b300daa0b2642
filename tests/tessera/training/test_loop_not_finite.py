"""What the training loop does about values that are not finite: it saves none, and ends if they stay."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_trainings import Regression, assert_same, states, weights
from torch import nn

from tessera.errors import UserError
from tessera.training.checkpoint import read_state
from tessera.training.loop import Trainer


def test_a_step_without_a_finite_gradient_changes_nothing(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    task, clean = Regression(training(steps=5)), Regression(training(steps=4, final_learning_rate_fraction=1.0))
    task = Regression(training(steps=5, final_learning_rate_fraction=1.0))
    task.poisoned = {4}
    poisoned, unpoisoned = trained(task, "poisoned"), trained(clean, "clean")
    for name, tensor in weights(unpoisoned).items():
        assert torch.equal(tensor, weights(poisoned)[name])
    assert task.calls == ["initialise", "update 0", "update 1", "update 2", "update 3", "discard"]
    assert "step 5: the gradient is not finite; the update is skipped" in capsys.readouterr().err
    assert all(tensor.isfinite().all() for tensor in poisoned.state.latest()[0].values())


def test_a_run_whose_gradients_stay_non_finite_is_given_up(training: Callable, trained: Callable) -> None:
    task = Regression(training(steps=30))
    task.poisoned = set(range(5, 30))
    with pytest.raises(UserError, match="step 15: 10 steps in a row without a finite gradient; lower learning_rate"):
        trained(task)


def test_a_criterion_that_is_not_finite_stops_the_run_at_once(training: Callable, trained: Callable) -> None:
    with pytest.raises(UserError, match="step 8: the validation's error is nan"):
        trained(Regression(training(), criteria=[1.0, math.nan]), "diverged")


def poison_data(task: Regression, trainer: Callable[[], Trainer]) -> None:
    task.poisoned = set(range(5, 40))


def poison_loss(task: Regression, trainer: Callable[[], Trainer]) -> None:
    plain = task.loss

    def loss(name: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple:
        value, parts = plain(name, model, batch)
        return (value * math.nan if "update 4" in task.calls else value), parts

    task.loss = loss


def poison_gradient(task: Regression, trainer: Callable[[], Trainer]) -> None:
    task.model.layers[0].weight.register_hook(lambda grad: grad * math.inf if "update 4" in task.calls else grad)


def at_step_5(poison: Callable[[Regression, Trainer], None]) -> Callable[[Regression, Callable[[], Trainer]], None]:
    def set_up(task: Regression, trainer: Callable[[], Trainer]) -> None:
        task.interrupt = lambda step: poison(task, trainer()) if step == 4 else None

    return set_up


def weight(task: Regression, trainer: Trainer) -> None:
    task.model.layers[0].weight.data[0, 0] = math.inf


def codebook(task: Regression, trainer: Trainer) -> None:
    task.model.seen.fill_(math.nan)


def moment(task: Regression, trainer: Trainer) -> None:
    trainer.groups[0].optimizer.state[task.model.layers[3].bias]["exp_avg"].fill_(math.nan)


def average(task: Regression, trainer: Trainer) -> None:
    trainer.groups[0].average.weights["layers.0.bias"][1] = math.nan


POISONS = {
    "data": poison_data,
    "loss": poison_loss,
    "gradient": poison_gradient,
    **{poison.__name__: at_step_5(poison) for poison in (weight, codebook, moment, average)},
}


@pytest.mark.parametrize("poison", list(POISONS))
def test_what_is_not_finite_never_reaches_a_state_and_healthy_code_goes_on_from_the_good_one(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture, monkeypatch, poison: str
) -> None:
    # An average's codebook is re-estimated, so that it would be healed in what is published.
    params = training(steps=20, validate_every=10, weight_ema_decay=0.9 if poison == "average" else 0.0)
    made: list[Trainer] = []
    begin = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: made.append(self) or begin(self))
    whole = trained(Regression(params), "whole", save_every=2)
    task = Regression(params)
    POISONS[poison](task, lambda: made[-1])
    with pytest.raises(UserError, match=r"finite|validation's error is (nan|inf)"):
        trained(task, "run", save_every=2)
    assert states() == ["step-000000002", "step-000000004"]
    for path in Path(".state/test/run").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in read_state(path)[0].values())
    told = capsys.readouterr().err.count("so no state is saved; that of step 4 stays")
    assert told == (poison in ("codebook", "moment", "average"))
    assert_same(whole, trained(Regression(params), "run", save_every=2))
    assert "going on from step 4 (" in capsys.readouterr().err


def test_a_table_of_log_probabilities_may_be_infinite_from_the_start(training: Callable, trained: Callable) -> None:
    task = Regression(training())
    task.model.register_buffer("table", torch.tensor([-1.0, -math.inf]))
    assert trained(task).progress.finished


def test_a_signal_while_nothing_can_be_saved_says_so(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    task = Regression(training(steps=20, validate_every=20))

    def interrupt(step: int) -> None:
        if step == 4:
            codebook(task, None)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    task.interrupt = interrupt
    with pytest.raises(SystemExit):
        trained(task, "run", save_every=2)
    assert "stopped by SIGTERM; the same command goes on from its last saved state" in capsys.readouterr().err
    assert states() == ["step-000000002", "step-000000004"]
