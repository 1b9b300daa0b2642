"""Parameters of a short training, and a run of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.launch.devices import accelerator
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import Task

TRAINING = {
    "seed": 0,
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "schedule_steps": None,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "warmup_steps": 2,
    "final_learning_rate_fraction": 0.1,
    "gradient_clip": 1.0,
    "weight_ema_decay": 0.0,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "validate_every": 4,
    "patience": None,
}
RUNTIME = {
    "processes": None,
    "threads": 1,
    "log_every": 1,
    "save_every": 1000,
    "save_minutes": None,
    "keep_states": 2,
    "micro_batch": None,
    "batch_size": 8,
    "pictures": 0.03,
}


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
