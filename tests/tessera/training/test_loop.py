"""The training loop, on a task small enough to see through: a regression with dropout and a moving statistic."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from small_trainings import RUNTIME as RUNTIME_VALUES
from small_trainings import NotedTask, assert_same, weights
from torch import nn

from tessera.cli import main
from tessera.errors import UserError
from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.randomness import SampleOrder, generator
from tessera.training import loop, saving
from tessera.training.checkpoint import StateFolder, read_state
from tessera.training.loop import Trainer
from tessera.training.optimizer import learning_rate
from tessera.training.progress import Choice, Progress
from tessera.training.running import request_end, running
from tessera.training.tracking import csv_text

RUNTIME = RuntimeParams(**RUNTIME_VALUES)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.register_buffer("seen", torch.zeros(()))  # stands for a codebook: moved by `update`, not by gradients

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        error = (self.layers(x) - y).square().mean()
        return error, {"error": error}


class Regression(NotedTask):
    section = "toy.training"
    criterion = "error"

    def __init__(self, params: TrainingParams, criteria: list[float] | None = None) -> None:
        super().__init__(params)
        torch.manual_seed(0)
        self.model = Network()
        self.x = torch.randn(20, 3, generator=generator("x"))
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]])
        self.order = SampleOrder(20, params.batch_size, params.seed)
        self.criteria = criteria
        self.validated: list[torch.Tensor] = []

    def initialise(self) -> None:
        self.calls.append("initialise")

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        indices = self.order.batch(step)[rows]
        scale = math.nan if step in self.poisoned else 1.0
        return {"x": self.x[indices] * scale, "y": self.y[indices]}

    def compile(self) -> None:
        self.calls.append("compile")

    def re_estimate(self) -> None:
        self.calls.append("re_estimate")
        self.model.seen.fill_(-1)

    def validate(self) -> dict[str, float]:
        assert not self.model.training
        self.validated.append(self.model.layers[0].weight.detach().clone())
        with torch.no_grad():
            error = (self.model.layers(self.x) - self.y).square().mean().item()
        return {"error": self.criteria.pop(0) if self.criteria else error}


def test_one_batch_is_learned_by_heart(training: Callable, trained: Callable) -> None:
    params = training(steps=400, batch_size=20, validate_every=400, learning_rate=0.02)
    task = Regression(params)
    task.model.layers[2].p = 0.0
    progress = trained(task).progress
    assert progress.train[0]["loss"] > 1 and progress.train[-1]["loss"] < 1e-3


def test_curves_have_a_row_each_log_step_and_each_validation(training: Callable, trained: Callable) -> None:
    progress = trained(Regression(training()), log_every=3).progress
    assert [row["step"] for row in progress.train] == [3, 6, 9]
    assert list(progress.train[0]) == ["step", "loss", "error", "seen", "learning_rate", "grad_norm"]
    assert [row["step"] for row in progress.validation] == [4, 8, 10]
    assert [row["learning_rate"] for row in progress.train] == [learning_rate(s - 1, training()) for s in (3, 6, 9)]


def test_curves_can_be_read_while_the_training_runs(training: Callable, trained: Callable) -> None:
    task, read = Regression(training()), {}

    def look(step: int) -> None:
        files = {path.stem: path.read_text() for path in Path("results/test").glob("*.csv")}
        read[step] = {name: text.count("\n") - 1 for name, text in files.items()}

    task.interrupt = look
    progress = trained(task, log_every=2).progress
    assert read[1] == {} and read[2] == read[3] == {"train": 1} and read[4] == {"train": 2, "validation": 1}
    assert Path("results/test/train.csv").read_text() == csv_text(progress.train)
    assert Path("results/test/validation.csv").read_text() == csv_text(progress.validation)


def test_a_run_that_died_writes_no_row_twice(training: Callable, trained: Callable) -> None:
    dying = Regression(training())
    dying.interrupt = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    with pytest.raises(SystemExit):
        trained(dying)
    resumed = trained(Regression(training()))
    assert Path("results/test/train.csv").read_text() == csv_text(resumed.progress.train)
    assert [row["step"] for row in resumed.progress.train] == [*range(1, 11)]


def test_a_run_that_begins_in_a_slow_bf16_is_warned_once_with_what_mends_it(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "slow_bf16", lambda device: "bf16 is slow here (7 times)")
    trained(Regression(training(precision="bf16")), "low")
    mended = "-S toy.training.precision=fp32 -S toy.training.channels_last=false"
    expected = f"warning: bf16 is slow here (7 times); this training is faster with `dvc exp run {mended}`\n"
    assert capsys.readouterr().err.count(expected) == 1
    trained(Regression(training()), "full")
    assert "warning" not in capsys.readouterr().err


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


def states() -> list[str]:
    return sorted(path.name for path in Path(".state/test/run").glob("[sf]*-*"))


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


def test_what_is_logged_how_often_changes_only_which_rows_there_are(training: Callable, trained: Callable) -> None:
    often, seldom = trained(Regression(training()), "often"), trained(Regression(training()), "seldom", log_every=3)
    assert [row for row in often.progress.train if row["step"] % 3 == 0] == seldom.progress.train
    for name, tensor in weights(often).items():
        assert torch.equal(tensor, weights(seldom)[name])


def test_a_finished_run_is_not_run_again(training: Callable, trained: Callable) -> None:
    first = trained(Regression(training()))
    again = trained(Regression(training()))
    assert again.task.calls == []
    assert_same(first, again)


def test_the_best_weights_by_validation_are_left_in_the_model(training: Callable, trained: Callable) -> None:
    trainer = trained(Regression(training(), criteria=[3.0, 1.0, 2.0]))
    assert trainer.progress.choices == {"error": Choice(1.0, 8, 1)}
    assert trainer.progress.metrics == {"error": 1.0}
    assert torch.equal(trainer.task.model.layers[0].weight, trainer.task.validated[1])
    assert trainer.task.model.seen == 8 and not trainer.task.model.training


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


def _signalled_in_the_third(metrics: dict[str, float], task: Regression) -> dict[str, float]:
    if len(task.validated) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return metrics


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


def test_validation_judges_the_averaged_weights_and_training_keeps_its_own(
    training: Callable, trained: Callable
) -> None:
    params = training(weight_ema_decay=0.9, validate_every=5)
    plain, averaged = Regression(training(validate_every=5)), Regression(params)
    raw: list[torch.Tensor] = []
    averaged.interrupt = lambda step: raw.append(averaged.model.layers[0].weight.detach().clone())
    trained(plain, "plain")
    trainer = trained(averaged, "averaged")
    average = Regression(params).model.layers[0].weight.detach()
    for step, weight in enumerate(raw):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        if step == 4:
            torch.testing.assert_close(averaged.validated[0], average)
    torch.testing.assert_close(averaged.validated[1], average)
    torch.testing.assert_close(raw[4], plain.validated[0])  # the average did not leak into training
    torch.testing.assert_close(raw[9], plain.validated[1])
    assert averaged.calls.count("re_estimate") == 2
    assert trainer.task.model.seen == -1  # published as it was re-estimated
    assert trainer.progress.train[-1]["seen"] == 10  # and training went on with its own


def test_what_a_task_excludes_is_not_averaged(training: Callable, trained: Callable) -> None:
    task = Regression(training(weight_ema_decay=0.9))
    task.re_estimated = frozenset({"layers.0.weight"})
    trainer = trained(task)
    averaged = trainer.groups[0].average.weights
    assert "layers.0.weight" not in averaged and "layers.3.weight" in averaged


def test_compiling_is_asked_for_once_and_only_where_there_is_something_to_train(
    training: Callable, trained: Callable
) -> None:
    params = training(compile=True)
    assert trained(Regression(params)).task.calls.count("compile") == 1
    assert trained(Regression(params)).task.calls == []


def test_an_accumulation_in_accelerates_environment_does_not_scale_the_gradient(
    training: Callable, trained: Callable, monkeypatch
) -> None:
    plain = trained(Regression(training()), "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert_same(plain, trained(Regression(training()), "accumulated"))


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(training: Callable) -> None:
    three = SimpleNamespace(num_processes=3)
    with pytest.raises(
        UserError, match=r"toy\.training\.batch_size: 8 is the global batch and must be a multiple of the 3"
    ):
        Trainer(Regression(training()), training(), RUNTIME, three, None)


def test_more_rows_than_a_state_can_hold_are_refused_before_the_first_step(
    training: Callable, trained: Callable
) -> None:
    with pytest.raises(UserError, match=r"runtime\.log_every: 1: train\.csv would have 2,000,000 rows"):
        trained(Regression(training(steps=2_000_000)), log_every=1)


def test_processes_that_would_each_train_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2 but Accelerate sees 1 process"):
        accelerator(RUNTIME)


def test_apples_gpu_which_has_no_float64_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert accelerator(RUNTIME).device.type == "cpu"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_another_way_of_sharing_the_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP, num_processes=1)
    monkeypatch.setattr("accelerate.Accelerator", lambda **arguments: sharded)
    with pytest.raises(UserError, match="the launcher asks for FSDP, which is not supported"):
        accelerator(RUNTIME)


def test_a_launchers_compiler_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    network = Network()
    assert accelerator(RUNTIME).prepare_model(network) is network


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
