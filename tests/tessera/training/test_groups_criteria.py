"""Two parameter groups that share nothing, each with a criterion, a best step and a patience of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_trainings import assert_same, interrupt_at, weights
from torch import nn

from tessera.parameters.training import TrainingParams
from tessera.randomness import generator
from tessera.training.loop import Trainer
from tessera.training.task import Batch, ParameterGroup, Task


class Halves(Task):
    """Two networks that share nothing, with losses and criteria of their own."""

    section, criterion = "toy.training", "left"
    losses = {"loss_left": 1.0, "loss_right": 3.0}  # noqa: RUF012

    def __init__(self, params: TrainingParams, left: list[float], right: list[float]) -> None:
        torch.manual_seed(0)
        self.params, self.values = params, {"left": left, "right": right}
        self.model = Both()
        self.validations, self.interrupt = 0, lambda step: None
        self.weights: list[dict[str, torch.Tensor]] = []

    def groups(self) -> tuple[ParameterGroup, ...]:
        return tuple(ParameterGroup(name, name, name, f"loss_{name}") for name in ("left", "right"))

    def batch(self, step: int, rows: slice) -> Batch:
        return {"x": torch.randn(8, 3, generator=generator("x", step))[rows]}

    def loss(self, name: str, model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(**batch, half=name.removeprefix("loss_"))

    def update(self, step: int) -> dict[str, torch.Tensor]:
        self.interrupt(step)
        return {}

    def validate(self) -> dict[str, float]:
        """The values that it was given, by the number of the validation: a function of the step alone."""
        place = next((i for i, w in enumerate(self.weights) if same(w, self.model.state_dict())), None)
        if place is None:
            self.weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            place = self.validations
            self.validations += 1
        return {name: values[place] for name, values in self.values.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def forward(self, x: torch.Tensor, half: str) -> torch.Tensor:
        return (getattr(self, half)(x) - 1).square().mean()


def chosen(trainer: Trainer) -> dict[str, tuple[float, int, int]]:
    return {name: (c.best, c.best_step, c.stale) for name, c in trainer.progress.choices.items()}


@pytest.fixture
def halves(training) -> Callable[[], Halves]:
    """A run in which the left half is best at step 2 and stops at step 6, and the right half stops at step 12."""
    params = training(steps=40, validate_every=2, patience=2)
    left, right = [1.0, 2.0, 1.5, 0.0, 0.0, 0.0, 7.0], [5.0, 4.0, 6.0, 3.0, 3.5, 3.25, 8.0]
    return lambda: Halves(params, [*left], [*right])


def test_each_half_has_a_best_step_and_patience_of_its_own(trained, halves) -> None:
    task = halves()
    trainer = trained(task)
    assert chosen(trainer) == {"left": (1.0, 2, 2), "right": (3.0, 8, 2)}
    assert trainer.progress.step == 12 and trainer.progress.finished
    found = weights(trainer)
    for name, tensor in found.items():  # buffers too: the right half has statistics of its batches
        best = task.weights[0 if name.startswith("left") else 3][name]
        assert torch.equal(tensor, best), name
    lefts = [w["left.weight"] for w in task.weights]
    assert not torch.equal(lefts[1], lefts[2]) and torch.equal(lefts[2], lefts[5])  # stopped at step 6
    rows = trainer.progress.train
    assert "loss_left" in rows[5] and "loss_left" not in rows[6] and "grad_norm_left" not in rows[6]
    assert rows[5]["loss"] == pytest.approx((rows[5]["loss_left"] + 3 * rows[5]["loss_right"]) / 4)
    assert rows[6]["loss"] == rows[6]["loss_right"]
    best = [(row["best_step_left"], row["best_step_right"]) for row in trainer.progress.validation]
    assert best == [(2, 2), (2, 4), (2, 4), (2, 8), (2, 8), (2, 8)]
    assert trainer.progress.metrics == {"left": 7.0, "right": 8.0}  # measured again, with the best of both


def test_a_signal_while_the_best_of_both_halves_are_measured_stops_the_run_with_its_result(
    trained, halves, monkeypatch
) -> None:
    whole, stopped, validate = trained(halves(), "whole"), halves(), Halves.validate

    def signalled(task: Halves) -> dict[str, float]:
        found = validate(task)
        if task.validations == 7:  # of the best weights of different steps, after the six of the training
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Halves, "validate", signalled)
        trained(stopped)
    (result,) = Path(".state/test/run").glob("*-*")
    assert result.name.startswith("finished-000000012")
    again = halves()
    assert_same(whole, trained(again))
    assert again.validations == 0


@pytest.mark.parametrize("at", [3, 6, 8, 11])
def test_halves_that_were_stopped_go_on_to_the_very_same_end(trained, halves, at) -> None:
    whole = trained(halves(), "whole")
    stopped = halves()
    stopped.interrupt = interrupt_at(at)
    with pytest.raises(SystemExit):
        trained(stopped, "stopped")
    again = halves()
    again.weights, again.validations = stopped.weights, stopped.validations
    assert_same(whole, trained(again, "stopped"))


def test_a_half_is_trained_as_if_the_other_were_not_there(trained, training) -> None:
    params = training(steps=6, validate_every=6)
    found = []
    for rate in (1.0, 1e3):
        task = Halves(params, [1.0, 1.0], [1.0, 1.0])
        task.model.right[0].weight.data.mul_(rate)
        found.append(weights(trained(task, str(rate))))
    assert torch.equal(found[0]["left.weight"], found[1]["left.weight"])
    assert not torch.equal(found[0]["right.0.weight"], found[1]["right.0.weight"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("a", "left", "loss_left"), ("a", "right", "loss_right")], "one name"),
        ([("a", "left", "loss_left"), ("b", "right", "loss_left")], "the losses are"),
        ([("a", "left", "loss_left"), ("b", "right.0", "loss_right")], "right.1.weight belongs to no parameter group"),
    ],
)
def test_groups_that_do_not_fit_the_task_are_refused(trained, training, groups, message) -> None:
    task = Halves(training(), [1.0], [1.0])
    task.groups = lambda: tuple(ParameterGroup("left", name, module, loss) for name, module, loss in groups)
    with pytest.raises(ValueError, match=message):
        trained(task)
