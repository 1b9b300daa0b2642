"""States that the training loop saves, and how a training that was stopped or died goes on from them."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_trainings import Network, Regression, assert_same, states, weights
from torch import nn

from tessera.cli import main
from tessera.errors import UserError
from tessera.training import saving
from tessera.training.progress import Progress
from tessera.training.tracking import csv_text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 4, 7, 9])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_run_that_was_stopped_goes_on_to_the_very_same_end(
    training: Callable, trained: Callable, number: signal.Signals, at: int, decay: float, capsys: pytest.CaptureFixture
) -> None:
    params = training(weight_ema_decay=decay)
    whole = trained(Regression(params), "whole")
    stopped = Regression(params)
    stopped.interrupt = lambda step: os.kill(os.getpid(), number) if step == at else None
    with pytest.raises(SystemExit) as stop:
        trained(stopped, "stopped")
    assert stop.value.code == 128 + number
    assert f"stopped by {number.name}; the same command goes on from here" in capsys.readouterr().err
    resumed = trained(Regression(params), "stopped")
    assert f"going on from step {at + 1}" in capsys.readouterr().err
    assert "initialise" not in resumed.task.calls and f"update {at}" not in resumed.task.calls
    assert_same(whole, resumed)


def test_a_run_that_died_goes_on_from_its_last_saved_state(training: Callable, trained: Callable) -> None:
    whole = trained(Regression(training()), "whole", save_every=3)
    dying = Regression(training())

    def die(step: int) -> None:
        if step == 7:
            raise MemoryError

    dying.interrupt = die
    with pytest.raises(MemoryError):
        trained(dying, "died", save_every=3)
    resumed = trained(Regression(training()), "died", save_every=3)
    assert resumed.task.calls[0] == "update 6"
    assert_same(whole, resumed)


def test_a_run_that_died_writes_no_row_twice(training: Callable, trained: Callable) -> None:
    dying = Regression(training())
    dying.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    with pytest.raises(SystemExit):
        trained(dying)
    resumed = trained(Regression(training()))
    assert Path("results/test/train.csv").read_text() == csv_text(resumed.progress.train)
    assert [row["step"] for row in resumed.progress.train] == [*range(1, 11)]


def test_a_damaged_state_costs_steps_but_changes_nothing(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    whole = trained(Regression(training()), "whole")
    stopped = Regression(training())
    stopped.interrupt = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 7 else None
    with pytest.raises(SystemExit):
        trained(stopped, "stopped", save_every=3)
    (newest,) = Path(".state/test/stopped").glob("step-000000008/state.safetensors")
    newest.write_bytes(b"x" + newest.read_bytes()[1:])
    resumed = trained(Regression(training()), "stopped", save_every=3)
    assert "warning: " in capsys.readouterr().err
    assert resumed.task.calls[0] == "update 6"
    assert_same(whole, resumed)


def test_moments_go_with_their_parameters_names_when_the_code_puts_them_in_another_order(
    training: Callable, trained: Callable
) -> None:
    class Turned(Network):
        def named_parameters(self, *args: object, **kwargs: object) -> list[tuple[str, nn.Parameter]]:
            return [*super().named_parameters(*args, **kwargs)][::-1]

    interrupted = Regression(training())
    interrupted.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(SystemExit):
        trained(interrupted)
    turned = Regression(training())
    turned.model = Turned()
    whole = weights(trained(Regression(training()), "whole"))
    for name, tensor in weights(trained(turned)).items():  # the gradient's norm is summed in another order
        torch.testing.assert_close(tensor, whole[name])


def test_weights_that_a_training_goes_on_with_are_copies_of_the_saved_file(
    training: Callable, trained: Callable
) -> None:
    """The file is mapped, and it is deleted while the training goes on."""
    trainer = trained(Regression(training(weight_ema_decay=0.9)))
    tensors = trainer.saver.tensors.tensors(trainer.best)
    mapped = {name: tensor.clone() for name, tensor in tensors.items()}
    best = trainer.saver.tensors.restore(mapped)
    assert best and all(torch.equal(best[name], mapped[f"best.{name}"]) for name in best)
    held = trainer.saver.tensors.tensors(best)
    assert held.keys() == mapped.keys()
    places = {tensor.untyped_storage().data_ptr() for tensor in mapped.values()}
    assert not places & {tensor.untyped_storage().data_ptr() for tensor in held.values()}


@pytest.mark.parametrize("changed", ["threads 7", "micro_batch 4"])
def test_going_on_with_other_threads_or_micro_batches_is_warned_of_in_one_line(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture, monkeypatch, changed: str
) -> None:
    stopped = Regression(training())
    stopped.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(SystemExit):
        trained(stopped)
    capsys.readouterr()
    name, number = changed.split()
    if name == "threads":
        monkeypatch.setattr(saving.torch, "get_num_threads", lambda: 7)
    trained(Regression(training()), **({"micro_batch": 4} if name == "micro_batch" else {}))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    before = "processes 1, threads 1, device cpu, micro_batch None"
    now = before.replace(f"{name} {1 if name == 'threads' else None}", f"{name} {number}")
    assert len(told) == 1 and f"made with {before}, and goes on with {now}; " in told[0]


def test_a_progress_of_other_code_is_refused_and_its_state_stays(
    training: Callable, trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = Regression(training())
    interrupted.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(SystemExit):
        trained(interrupted)
    kind = dataclasses.make_dataclass("Progress", [("new", int, 0)], bases=(Progress,))
    monkeypatch.setattr("tessera.training.loop.Progress", kind)
    before = states()
    with pytest.raises(UserError, match="the progress of its state of step 6 does not fit the code as it is; undo"):
        trained(Regression(training()))
    assert states() == before


def test_a_state_that_no_longer_fits_the_model_is_refused_and_stays(training: Callable, trained: Callable) -> None:
    interrupted = Regression(training(weight_ema_decay=0.9))
    interrupted.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(SystemExit):
        trained(interrupted)
    wider = Regression(training(weight_ema_decay=0.9))
    wider.model.layers = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 1))
    before = states()
    with pytest.raises(UserError, match=r"does not fit the code as it is; .*tessera states --delete test/run/step-"):
        trained(wider)
    assert states() == before
    # With the edit undone it goes on.
    assert trained(Regression(training(weight_ema_decay=0.9))).progress.step == 10


def test_the_command_that_deletes_states_that_do_not_fit_leaves_a_result_of_other_code(
    training: Callable, trained: Callable
) -> None:
    trained(Regression(training()))
    (result,) = Path(".state/test/run").glob("finished-*")
    result = result.rename(result.with_name("finished-000000010-0123456789ab"))
    interrupted = Regression(training())
    interrupted.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    with pytest.raises(SystemExit):
        trained(interrupted, save_every=3)
    assert len(states()) == 1 + 2

    def wider() -> Regression:
        task = Regression(training())
        task.model.layers = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 1))
        return task

    with pytest.raises(UserError) as refused:
        trained(wider())
    _, command, _ = str(refused.value).split("`")
    assert command.startswith("python -m tessera states --delete ")
    assert main(command.split()[3:]) == 0
    assert states() == [result.name]
    assert trained(wider()).progress.step == 10
    assert result.name in states()


@pytest.mark.parametrize("kept", [2, 3])
def test_only_the_newest_states_remain_and_in_the_end_the_result(
    training: Callable, trained: Callable, kept: int
) -> None:
    task, seen = Regression(training()), []
    task.interrupt = lambda step: seen.append(states())
    trainer = trained(task, save_every=2, keep_states=kept)
    assert seen[9] == ["step-000000002", "step-000000004", "step-000000006", "step-000000008"][-kept:]
    assert states() == [trainer.state.result(10).name]
    tensors, values = trainer.state.latest()
    assert {name.partition(".")[0] for name in tensors} == {"best"} and values["progress"]["finished"]


def test_a_state_is_saved_too_when_the_minutes_have_passed(
    training: Callable, trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen, now = Regression(training()), [], [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])

    def step(number: int) -> None:
        seen.append(states())
        now[0] += 20

    task.interrupt = step
    trained(task, save_minutes=1, save_every=4)
    # After steps 3 (a minute), 4 (its number), 7 (a minute after 4), 8 (its number).
    assert seen[3] == ["step-000000003"] and seen[4] == ["step-000000003", "step-000000004"]
    assert seen[7] == ["step-000000004", "step-000000007"] and seen[9] == ["step-000000007", "step-000000008"]
