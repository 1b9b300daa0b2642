"""Parameters of a short training, a task that notes what is asked of it, and how two trainings are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tessera.parameters.training import TrainingParams
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
    "trackers": (),
}


class NotedTask(Task):
    """A task whose model has a buffer `seen`, which `update` counts up.

    Attributes:
        calls: what was asked of it, in order.
        interrupt: called with each step, within `update`.
        poisoned: the steps whose batch is to be NaN.
    """

    def __init__(self, params: TrainingParams) -> None:
        self.params = params
        self.calls: list[str] = []
        self.interrupt: Callable[[int], None] = lambda step: None
        self.poisoned: set[int] = set()

    def update(self, step: int) -> dict[str, torch.Tensor]:
        self.calls.append(f"update {step}")
        self.model.seen += 1
        self.interrupt(step)
        return {"seen": self.model.seen}

    def discard(self) -> None:
        self.calls.append("discard")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}


def assert_same(one: Trainer, other: Trainer) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name
    assert one.progress.to_json() == other.progress.to_json()
