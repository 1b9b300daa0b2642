"""How the training loop ends: after its last step, by patience, when asked to, or by a signal close to the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from small_trainings import Regression, assert_same

from tessera.training.checkpoint import StateFolder
from tessera.training.running import request_end, running


def test_a_finished_run_is_not_run_again(training: Callable, trained: Callable) -> None:
    first = trained(Regression(training()))
    again = trained(Regression(training()))
    assert again.task.calls == []
    assert_same(first, again)


def test_patience_ends_a_run_that_no_longer_improves(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    params = training(steps=40, validate_every=2, patience=3)
    trainer = trained(Regression(params, criteria=[5.0, 4.0, 4.5, 4.0, 6.0, 1.0]))
    assert [row["step"] for row in trainer.progress.validation] == [2, 4, 6, 8, 10]
    assert trainer.progress.choices["error"].best_step == 4 and trainer.progress.finished
    assert "step 10: ends here, after 3 validations without improvement" in capsys.readouterr().err


def test_a_signal_at_the_last_of_patience_stops_the_run_and_the_same_command_finishes_it(
    training: Callable, trained: Callable
) -> None:
    params, criteria = training(steps=40, validate_every=2, patience=2), [5.0, 4.0, 4.5, 4.0, 1.0]
    whole = trained(Regression(params, criteria=[*criteria]), "whole")
    assert whole.progress.step == 8
    interrupted = Regression(params, criteria=[*criteria])
    interrupted.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    with pytest.raises(SystemExit):
        trained(interrupted)
    again = trained(Regression(params))
    assert again.task.calls == [] and again.progress.finished
    assert_same(whole, again)


def test_a_training_that_is_asked_to_end_ends_at_its_next_validation_and_is_repeated_by_the_steps_it_tells(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    def ask(step: int) -> None:
        if step == 5:
            (folder,) = running("test")
            request_end(folder)

    params = training(steps=20, validate_every=4)
    task = Regression(params)
    task.interrupt = ask
    ended = trained(task, "ended")
    assert ended.progress.step == 8 and ended.progress.finished
    told = "steps: 8 and schedule_steps: 20 train the same again"
    assert f"step 8: ends here, as `python -m tessera stop` asked; {told}" in capsys.readouterr().err
    assert_same(ended, trained(Regression(training(validate_every=4, **params.after(8))), "repeated"))
    assert_same(ended, trained(Regression(params), "ended"))  # the same command publishes again what there is


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_during_the_last_validation_stops_the_run_and_the_same_command_finishes_it(
    training: Callable, trained: Callable, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """With several processes, what they ask for in the last step's exchange is too early."""
    monkeypatch.setattr("tessera.training.stopping.world", lambda: (0, processes))
    whole = trained(Regression(training()), "whole")
    interrupted, validate = Regression(training()), Regression.validate
    monkeypatch.setattr(interrupted, "validate", lambda: _signalled_in_the_third(validate(interrupted), interrupted))
    with pytest.raises(SystemExit) as stop:
        trained(interrupted)
    assert stop.value.code == 128 + signal.SIGTERM
    assert [path.name for path in Path(".state/test/run").glob("*-*")] == ["step-000000010"]
    resumed = trained(Regression(training()))
    assert resumed.task.calls == [] and resumed.progress.finished
    assert_same(whole, resumed)


def _signalled_in_the_third(metrics: dict[str, float], task: Regression) -> dict[str, float]:
    if len(task.validated) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return metrics


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_in_the_validation_at_which_a_training_was_asked_to_end_does_not_make_it_go_on(
    training: Callable,
    trained: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    processes: int,
) -> None:
    monkeypatch.setattr("tessera.training.stopping.world", lambda: (0, processes))

    def asked(metrics: dict[str, float]) -> dict[str, float]:
        (folder,) = running("test")
        request_end(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    params = training(steps=20, validate_every=4)
    interrupted, validate = Regression(params), Regression.validate
    monkeypatch.setattr(interrupted, "validate", lambda: asked(validate(interrupted)))
    with pytest.raises(SystemExit) as stop:
        trained(interrupted)
    assert stop.value.code == 128 + signal.SIGTERM
    assert "the training is done, and the same command publishes it" in capsys.readouterr().err
    resumed = trained(Regression(params))
    assert resumed.task.calls == [] and resumed.progress.finished and resumed.progress.step == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_while_the_result_is_saved_stops_the_run_and_the_same_command_publishes_it(
    training: Callable,
    trained: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    processes: int,
) -> None:
    monkeypatch.setattr("tessera.training.stopping.world", lambda: (0, processes))
    finish = StateFolder.finish

    def signalled(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        finish(*arguments)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(StateFolder, "finish", signalled)
        trained(Regression(training()))
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the training is done, and the same command publishes it" in capsys.readouterr().err
    resumed = trained(Regression(training()))
    assert resumed.task.calls == resumed.task.validated == [] and resumed.progress.finished
