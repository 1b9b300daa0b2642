"""The training loop, on a small regression with dropout: what it learns, averages and writes, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from small_trainings import RUNTIME as RUNTIME_VALUES
from small_trainings import Network, Regression, assert_same, weights

from tessera.errors import UserError
from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams
from tessera.training import loop
from tessera.training.loop import Trainer
from tessera.training.optimizer import learning_rate
from tessera.training.progress import Choice
from tessera.training.tracking import csv_text

RUNTIME = RuntimeParams(**RUNTIME_VALUES)


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


def test_the_bar_shows_the_loss_another_figure_and_that_of_the_last_validation(
    training: Callable, trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(loop.Bar, "set_postfix_str", lambda self, text, refresh: shown.append(text))
    task = Regression(training())
    task.shown = "seen"
    progress = trained(task, log_every=3).progress
    third, sixth, ninth = (f"loss {row['loss']:.4g}, seen {row['seen']:.4g}" for row in progress.train)
    fourth, eighth, tenth = (f"validation error {row['error']:.4g}" for row in progress.validation)
    assert shown[:4] == [third, f"{third}, {fourth}", f"{sixth}, {fourth}", f"{sixth}, {eighth}"]
    assert shown[4:] == [f"{ninth}, {eighth}", f"{ninth}, {tenth}"]


def test_the_bar_leaves_out_what_a_task_does_not_have(training: Callable, trained: Callable) -> None:
    trainer = trained(Regression(training()), log_every=20)
    assert trainer._figures() == f"validation error {trainer.progress.validation[-1]['error']:.4g}"
    trainer.progress.validation.clear()
    assert trainer._figures() == ""


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


def test_a_run_that_begins_in_a_slow_bf16_is_warned_once_with_what_mends_it(
    training: Callable, trained: Callable, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "slow_bf16", lambda device: "bf16 is slow here (7 times)")
    trained(Regression(training(precision="bf16")), "low")
    mended = "-S toy.training.precision=fp32 -S toy.training.channels_last=false"
    expected = f"warning: bf16 is slow here (7 times); this training may be faster with `dvc exp run {mended}`\n"
    assert capsys.readouterr().err.count(expected) == 1
    trained(Regression(training()), "full")
    assert "warning" not in capsys.readouterr().err


def test_what_is_logged_how_often_changes_only_which_rows_there_are(training: Callable, trained: Callable) -> None:
    often, seldom = trained(Regression(training()), "often"), trained(Regression(training()), "seldom", log_every=3)
    assert [row for row in often.progress.train if row["step"] % 3 == 0] == seldom.progress.train
    for name, tensor in weights(often).items():
        assert torch.equal(tensor, weights(seldom)[name])


def test_the_best_weights_by_validation_are_left_in_the_model(training: Callable, trained: Callable) -> None:
    trainer = trained(Regression(training(), criteria=[3.0, 1.0, 2.0]))
    assert trainer.progress.choices == {"error": Choice(1.0, 8, 1)}
    assert trainer.progress.metrics == {"error": 1.0}
    assert torch.equal(trainer.task.model.layers[0].weight, trainer.task.validated[1])
    assert trainer.task.model.seen == 8 and not trainer.task.model.training


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
    told = "runtime.log_every: 1: with toy.training.steps, train.csv would have 2,000,000 rows"
    with pytest.raises(UserError, match=re.escape(told)):
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
