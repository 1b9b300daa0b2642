"""Parameters of a short training, and a run of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_trainings import RUNTIME, TRAINING

from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import Task


@pytest.fixture
def training() -> Callable[..., TrainingParams]:
    """`training(steps=4)`: parameters of a training of ten steps, with changes."""
    return lambda **changes: TrainingParams(**{**TRAINING, **changes})


@pytest.fixture(autouse=True)
def on_the_cpu_in_an_empty_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture
def trained() -> Callable[..., Trainer]:
    """`trained(task, "name of the run", save_every=3)`: train a task to the end."""

    def run(task: Task, identity: str = "run", **runtime: Any) -> Trainer:
        settings = RuntimeParams(**{**RUNTIME, **runtime})
        with StateFolder("test", identity, True) as state:
            trainer = Trainer(task, task.params, settings, accelerator(settings), state)
            trainer.run()
        return trainer

    return run
