"""Parameters of a short training, tasks that note what is asked of them, and how two trainings are compared."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tessera.parameters.training import TrainingParams
from tessera.randomness import SampleOrder, generator
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


def interrupt_at(at: int) -> Callable[[int], None]:
    return lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == at else None


def states() -> list[str]:
    return sorted(path.name for path in Path(".state/test/run").glob("[sf]*-*"))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}


def assert_same(one: Trainer, other: Trainer) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name
    assert one.progress.to_json() == other.progress.to_json()
