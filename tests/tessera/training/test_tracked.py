"""What trackers are sent of a training, and that none can stop it. Here they are stand-ins for those of `trackers`."""

from __future__ import annotations

import csv
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_trainings import RUNTIME, NotedTask, assert_same
from torch import nn

from tessera.cli import main
from tessera.errors import UserError
from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams
from tessera.training import tracked
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.tracked import Trackers, flat, require_trackers

VALUES = {"width": 8, "training": {"steps": 10, "patience": None, "betas": [0.9, 0.95]}, "extra": {}}


class Toy(NotedTask):
    section = "toy.training"
    criterion = "error"

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.model.register_buffer("seen", torch.zeros(()))

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        return {"input": torch.full((8, 3), step / 10)[rows]}

    def loss(self, name: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["input"]).square().mean()

    def validate(self) -> dict[str, float]:
        return {"error": self.model.weight.abs().sum().item()}


class Kept:
    """A tracker that keeps its runs in memory. A run that is opened begins anew, as those of `trackers` do."""

    runs: dict[str, Kept]
    fails_in: str | None = None

    def __init__(self, folder: Path, stage: str, name: str, parameters: dict[str, Any]) -> None:
        self.fail("open")
        self.sent: list[tuple[int, str, Any]] = []
        self.parameters, self.finished, self.folder = parameters, False, folder
        self.runs[f"{stage}/{name}"] = self

    def fail(self, where: str) -> None:
        if self.fails_in == where:
            raise OSError(f"no\n{where}")

    def log(self, values: dict[str, float], step: int) -> None:
        self.fail("log")
        self.sent += [(step, name, value) for name, value in values.items()]

    def show(self, picture: Path, step: int) -> None:
        self.fail("show")
        self.sent.append((step, "picture", picture.read_bytes()))

    def finish(self) -> None:
        self.fail("finish")
        self.finished = True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    """A tracker in the place of TensorBoard. wandb's place has another, which always works."""
    module = ModuleType("stand_ins")
    module.RUNS = {name: type("OwnKept", (Kept,), {"runs": {}}) for name in ("tensorboard", "wandb")}
    monkeypatch.setitem(sys.modules, "stand_ins", module)
    monkeypatch.setattr(tracked, "RUNS", "stand_ins")
    monkeypatch.setattr(tracked, "find_spec", lambda name: ModuleSpec(name, None, origin="somewhere"))
    return module.RUNS["tensorboard"]


def train(task: Toy, identity: str = "0123456789abcdef", **runtime: Any) -> Trainer:
    settings = RuntimeParams(**{**RUNTIME, "trackers": ("tensorboard", "wandb"), **runtime})
    with StateFolder("test", identity, True) as state:
        trainer = Trainer(task, task.params, settings, accelerator(settings), state, values=VALUES)
        trainer.run()
    return trainer


def curves() -> list[tuple[int, str, float]]:
    """What a tracker should have of the CSV files."""
    found = []
    for name in ("train", "validation"):
        with Path(f"results/test/{name}.csv").open() as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                found += [(step, f"{name}/{column}", float(value)) for column, value in row.items() if value]
    return sorted(found)


def of_curves(sent: list[tuple[int, str, Any]]) -> list[tuple[int, str, float]]:
    return sorted(each for each in sent if each[1].startswith(("train/", "validation/")))


def picture(step: int) -> None:
    path = Path(f"results/test/images/step-{step:09d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(step).encode())


def test_a_tracker_gets_curves_pictures_figures_and_parameters_in_the_order_of_steps(kept, training) -> None:
    task = Toy(training())
    task.interrupt = lambda step: picture(4) if step == 3 else None  # as a validation draws it
    trainer = train(task)
    (run,) = kept.runs.values()
    assert list(kept.runs) == ["test/0123456789ab"] and run.folder == Path("results/trackers/tensorboard")
    assert of_curves(run.sent) == curves() and len(curves()) > 30
    assert (4, "picture", b"4") in run.sent
    figures = {name: value for step, name, value in run.sent if name.startswith("metrics/") and step == 10}
    assert figures == {f"metrics/{name}": value for name, value in trainer.metrics().items()}
    assert [step for step, *_ in run.sent] == sorted(step for step, *_ in run.sent)
    assert run.parameters == {
        "width": 8,
        "training.steps": 10,
        "training.patience": "null",
        "training.betas": "[0.9, 0.95]",
        "extra": "{}",
    }
    assert run.finished


def test_a_run_that_goes_on_has_every_row_once(kept, training) -> None:
    task = Toy(training())

    def killed(step: int) -> None:
        picture(step + 1)
        if step == 8:
            raise RuntimeError("killed")

    task.interrupt = killed
    with pytest.raises(RuntimeError, match="killed"):
        train(task, save_every=4)
    (run,) = kept.runs.values()
    assert run.finished and max(step for step, *_ in run.sent) == 8
    trainer = train(Toy(training()), save_every=4, pictures=0.5)
    (run,) = kept.runs.values()
    assert of_curves(run.sent) == curves() and len({each[:2] for each in run.sent}) == len(run.sent)
    assert [step for step, name, _ in run.sent if name == "picture"] == []  # none has the mark of this training
    assert trainer.progress.finished


def test_a_finished_training_fills_a_tracker_that_was_not_there(kept, training) -> None:
    train(Toy(training()), trackers=())
    assert not kept.runs
    train(Toy(training()))
    (run,) = kept.runs.values()
    assert of_curves(run.sent) == curves() and {"metrics/error", "metrics/steps"} <= {name for _, name, _ in run.sent}
    assert [step for step, *_ in run.sent] == sorted(step for step, *_ in run.sent)


@pytest.mark.parametrize("where", ["open", "log", "show", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_training_is_the_same(
    where, kept, training, capsys, monkeypatch
) -> None:
    without = train(Toy(training()), "without", trackers=())
    monkeypatch.setattr(kept, "fails_in", where)
    task = Toy(training())
    task.interrupt = lambda step: picture(4) if step == 3 else None
    capsys.readouterr()
    with_it = train(task)
    said = capsys.readouterr().err
    line = f"nothing more goes to tensorboard in this run, and the training goes on (OSError: no {where})"
    assert said.count("note: ") == 1 and line in said
    assert_same(without, with_it)
    (other,) = sys.modules["stand_ins"].RUNS["wandb"].runs.values()
    assert of_curves(other.sent) == curves() and other.finished


def test_a_process_that_writes_no_results_opens_no_tracker(kept, training, monkeypatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.is_main_process", property(lambda self: False))
    task = Toy(training())
    settings = RuntimeParams(**{**RUNTIME, "trackers": ("tensorboard",)})
    with StateFolder("test", "run", True) as state:
        Trainer(task, task.params, settings, accelerator(settings), state).run()
    assert not kept.runs and not Path("results").exists()


def test_pictures_that_are_no_training_s_own_are_not_sent(kept) -> None:
    picture(2)
    Path("results/test/images/step-mine.png").touch()
    with Trackers(["tensorboard"], "test", "0123", {}) as trackers:
        trackers.follow({})
        trackers.follow({})
    (run,) = kept.runs.values()
    assert run.sent == [(2, "picture", b"2")]


def test_a_tracker_that_is_not_installed_is_refused_before_training(training, monkeypatch) -> None:
    installed = {"trackio": ModuleSpec("trackio", None, origin="somewhere"), "wandb": ModuleSpec("wandb", None)}
    monkeypatch.setattr(tracked, "find_spec", installed.get)
    require_trackers(["trackio"])
    for name in ("tensorboard", "wandb"):  # wandb: a folder of this name is no package
        with pytest.raises(UserError, match=rf'^runtime\.trackers: {name} is not .* `pip install -e "\.\[{name}\]"`'):
            train(Toy(training()), trackers=("trackio", name))
    assert not Path("results").exists()


@pytest.mark.parametrize("command", [["check"], ["fingerprint"]])
def test_the_commands_that_check_parameters_look_for_the_trackers(
    command, raw_params, repository, in_tmp, monkeypatch, capsys
) -> None:
    (in_tmp / "dvc.yaml").write_text((repository / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()
    raw_params["runtime"]["trackers"] = ["trackio"]
    Path("params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
    monkeypatch.setattr(tracked, "find_spec", lambda name: None)
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: runtime.trackers: trackio is not installed; ")
    assert not Path("results").exists()


def test_a_tracker_is_named_once_and_is_one_of_those_there_are() -> None:
    for wrong in (("tensorboard", "tensorboard"), ("mlflow",)):
        with pytest.raises(ValidationError):
            RuntimeParams(**{**RUNTIME, "trackers": wrong})


def test_parameters_of_one_level_keep_their_kinds() -> None:
    assert flat({"a": {"b": {"c": True}}, "d": 0.5, "e": "x", "f": ["é"], "g": None}) == {
        "a.b.c": True,
        "d": 0.5,
        "e": "x",
        "f": '["\\u00e9"]',
        "g": "null",
    }
