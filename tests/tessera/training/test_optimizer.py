"""Learning rates, and what weight decay touches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tessera.parameters.training import TrainingParams
from tessera.training.optimizer import build_optimizer, learning_rate
from tessera.training.task import ParameterGroup


@pytest.fixture
def training(params: Callable) -> Callable[..., TrainingParams]:
    def make(**changes: object) -> TrainingParams:
        return params({f"stage1_vqvae.training.{name}": value for name, value in changes.items()}).stage1_vqvae.training

    return make


def test_the_learning_rate_warms_up_and_falls_to_its_floor(training) -> None:
    params = training(steps=102, warmup_steps=2, learning_rate=1.0, final_learning_rate_fraction=0.1)
    points = {0: 0.5, 1: 1.0, 2: 1.0, 27: 0.1 + 0.9 * (2 + math.sqrt(2)) / 4, 52: 0.55, 102: 0.1}
    for step, expected in points.items():
        assert learning_rate(step, params) == pytest.approx(expected)
    assert learning_rate(0, training(warmup_steps=0, learning_rate=0.02)) == 0.02


def test_a_schedule_may_be_longer_or_shorter_than_the_training(training) -> None:
    whole = training(steps=100, warmup_steps=10, learning_rate=1.0)
    for schedule in ("cosine", "exponential"):
        changes = {"schedule": schedule, "learning_rate": 1.0, "warmup_steps": 10}
        long, same = training(steps=40, schedule_steps=100, **changes), training(steps=100, **changes)
        assert [learning_rate(s, long) for s in range(40)] == [learning_rate(s, same) for s in range(40)]
        short = training(steps=100, schedule_steps=50, **changes)
        assert {learning_rate(s, short) for s in range(50, 100)} == {whole.final_learning_rate_fraction}


def test_an_exponential_schedule_falls_by_the_same_factor_each_step_and_needs_an_end(training) -> None:
    changes = {"steps": 102, "warmup_steps": 2, "learning_rate": 1.0, "schedule": "exponential"}
    params = training(**changes, final_learning_rate_fraction=0.01)
    assert learning_rate(2, params) == pytest.approx(1.0) and learning_rate(52, params) == pytest.approx(0.1)
    assert learning_rate(31, params) / learning_rate(30, params) == pytest.approx(0.01 ** (1 / 100))
    with pytest.raises(ValueError, match="never reaches 0"):
        training(**changes, final_learning_rate_fraction=0.0)


def test_matrices_are_decayed_and_vectors_are_not(training) -> None:
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = build_optimizer(dict(model.named_parameters()), training(weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sorted(decays.values()) == [0.0, 0.0, 0.3, 0.3]
    assert all(group["weight_decay"] == 0.3 * (p.ndim > 1) for group in optimizer.param_groups for p in group["params"])


def test_codebooks_biases_and_norms_are_not_decayed(training) -> None:
    model = nn.ModuleDict({"layer": nn.Linear(2, 3), "book": nn.ParameterDict({"codebook": torch.zeros(4, 2)})})
    parameters = dict(model.named_parameters())
    groups = build_optimizer(parameters, training(weight_decay=0.1), frozenset({"book.codebook"})).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (2, 0.0)]
    assert groups[0]["params"][0] is model["layer"].weight


def test_a_groups_settings_take_precedence(training) -> None:
    parameters = dict(nn.Linear(3, 2).named_parameters())
    group = ParameterGroup("loss", learning_rate_factor=0.5, betas=(0.1, 0.2), weight_decay=0.7)
    matrix, vector = build_optimizer(parameters, training(learning_rate=0.01), group=group).param_groups
    assert matrix["lr"] == vector["lr"] == 0.005 and matrix["betas"] == vector["betas"] == (0.1, 0.2)
    assert (matrix["weight_decay"], vector["weight_decay"]) == (0.7, 0.0)
