"""Several losses and parameter groups in the one loop: an adversarial pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_trainings import NotedTask, assert_same, interrupt_at, weights
from torch import nn

from tessera.errors import UserError
from tessera.parameters.training import TrainingParams
from tessera.randomness import generator
from tessera.training.optimizer import learning_rate
from tessera.training.task import NEWEST, Batch, ParameterGroup


class Adversaries(nn.Module):
    """A generator, and a discriminator inside it, as a VQ-VAE will hold one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.discriminator = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, noise: torch.Tensor, real: torch.Tensor, loss: str) -> torch.Tensor | tuple:
        fake = self.network(noise) * self.scale
        if loss == "generator":
            return F.softplus(-self.discriminator(fake)).mean(), {"size": fake.square().mean()}
        return (F.softplus(self.discriminator(fake)) + F.softplus(-self.discriminator(real))).mean()


class Adversarial(NotedTask):
    section, criterion = "toy.training", "distance"
    losses = {"generator": 1.0, "discriminator": 0.0}  # noqa: RUF012

    def __init__(self, params: TrainingParams) -> None:
        super().__init__(params)
        torch.manual_seed(0)
        self.model = Adversaries()

    def groups(self) -> tuple[ParameterGroup, ...]:
        slow = {"learning_rate_factor": 0.5, "betas": (0.0, 0.9), "weight_decay": 0.0, "gradient_clip": 0.3}
        return (
            ParameterGroup("distance", "generator", loss="generator"),
            ParameterGroup("distance", "discriminator", "discriminator", "discriminator", **slow),
        )

    def batch(self, step: int, rows: slice) -> Batch:
        noise = torch.randn(8, 2, generator=generator("noise", step))
        real = torch.randn(8, 3, generator=generator("real", step)) + 2
        return {"noise": noise[rows], "real": real[rows] * (math.nan if step in self.poisoned else 1.0)}

    def loss(self, name: str, model: nn.Module, batch: Batch) -> torch.Tensor | tuple:
        return model(**batch, loss=name)

    def validate(self) -> dict[str, float]:
        with torch.no_grad():
            fake = self.model.network(torch.randn(50, 2, generator=generator("validation"))) * self.model.scale
        return {"distance": (fake.mean(0) - 2).square().sum().item()}


def by_hand(params: TrainingParams, seeds: list[dict[str, int]]) -> Adversaries:
    """The same training written out: each loss differentiated for its own parameters alone."""
    task = Adversarial(params)
    model = task.model
    first = [*model.network.parameters(), model.scale]
    generators = torch.optim.AdamW(
        [
            {"params": [p for p in first if p.ndim > 1], "weight_decay": params.weight_decay},
            {"params": [p for p in first if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=params.betas,
        fused=True,
    )
    second = list(model.discriminator.parameters())
    discriminators = torch.optim.AdamW(second, betas=(0.0, 0.9), weight_decay=0.0, fused=True)
    for step, seed in enumerate(seeds):
        batch, rate = task.batch(step, slice(None)), learning_rate(step, params)
        rounds = (
            ("generator", first, generators, 1.0, params.gradient_clip),
            ("discriminator", second, discriminators, 0.5, 0.3),
        )
        for name, parameters, optimizer, factor, clip in rounds:
            torch.manual_seed(seed[name])
            result = model(**batch, loss=name)
            loss = result[0] if isinstance(result, tuple) else result
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, clip)
            for part in optimizer.param_groups:
                part["lr"] = rate * factor
            optimizer.step()
    return model


def test_each_group_is_updated_by_its_own_loss_and_settings_alone(trained, training) -> None:
    from tessera.randomness import seed_of

    params = training(validate_every=10)
    seeds = [{name: seed_of("step", 0, step, 0, name) for name in Adversarial.losses} for step in range(10)]
    expected = by_hand(params, seeds).state_dict()
    found = weights(trained(Adversarial(params)))
    assert found.pop("seen") == 10
    for name, tensor in found.items():
        # The loop sums the norm of the generator's gradients in the order of its parameters.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_no_gradient_of_a_loss_reaches_the_parameters_of_another(trained, training, monkeypatch) -> None:
    seen: list[tuple[str, set[str]]] = []
    backward = torch.Tensor.backward
    task = Adversarial(training(steps=2, warmup_steps=1, validate_every=2))
    loss = Adversarial.loss

    def noted(self: Adversarial, name: str, model: nn.Module, batch: Batch) -> Any:
        needing = {key.split(".")[0] for key, p in self.model.named_parameters() if p.requires_grad}
        seen.append((name, needing))
        return loss(self, name, model, batch)

    def checked(tensor: torch.Tensor) -> None:
        before = {key: p.grad for key, p in task.model.named_parameters()}
        backward(tensor)
        changed = {key.split(".")[0] for key, p in task.model.named_parameters() if p.grad is not before[key]}
        assert changed == seen[-1][1]

    monkeypatch.setattr(Adversarial, "loss", noted)
    monkeypatch.setattr(torch.Tensor, "backward", checked)
    trained(task)
    steps = seen[len(task.losses) :]  # before the first step, memory is measured by a forward pass of each loss
    assert steps == [("generator", {"network", "scale"}), ("discriminator", {"discriminator"})] * 2
    assert all(parameter.requires_grad for parameter in task.model.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("at", [0, 4, 9])
def test_an_adversarial_run_that_was_stopped_goes_on_to_the_very_same_end(trained, training, at, decay) -> None:
    params = training(weight_ema_decay=decay)
    whole = trained(Adversarial(params), "whole")
    stopped = Adversarial(params)
    stopped.interrupt = interrupt_at(at)
    with pytest.raises(SystemExit):
        trained(stopped, "stopped")
    resumed = trained(Adversarial(params), "stopped")
    assert f"update {at}" not in resumed.task.calls
    assert_same(whole, resumed)


def test_curves_of_several_losses_have_columns_of_each(trained, training) -> None:
    row = trained(Adversarial(training())).progress.train[-1]
    assert list(row) == [
        *("step", "loss", "generator", "discriminator", "size", "seen", "learning_rate"),
        *("grad_norm_generator", "grad_norm_discriminator"),
    ]
    assert row["loss"] == row["generator"]  # by the weights 1 and 0


def test_groups_of_one_criterion_are_chosen_at_one_step(trained, training) -> None:
    progress = trained(Adversarial(training())).progress
    assert list(progress.choices) == ["distance"] and "best_step_generator" not in progress.validation[-1]
    assert progress.metrics == {"distance": progress.choices["distance"].best}


def test_a_gradient_that_is_not_finite_skips_the_update_of_its_own_group(trained, training, capsys) -> None:
    params = training(steps=5, final_learning_rate_fraction=1.0, validate_every=5)
    task, clean = Adversarial(params), Adversarial(training(steps=4, final_learning_rate_fraction=1.0))
    task.poisoned = {4}  # the real samples, which only the discriminator sees
    found, before = weights(trained(task, "poisoned")), weights(trained(clean, "clean"))
    moved = {name for name, tensor in found.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"network", "scale"}
    assert task.calls[-1] == "discard" and task.calls.count("discard") == 1
    assert "step 5: the gradient of discriminator is not finite; the update is skipped" in capsys.readouterr().err


def test_a_group_whose_gradients_stay_non_finite_ends_the_run(trained, training) -> None:
    task = Adversarial(training(steps=30))
    task.poisoned = set(range(5, 30))
    with pytest.raises(UserError, match="step 15: 10 steps in a row without a finite gradient of discriminator"):
        trained(task)


class Late(Adversarial):
    """The discriminator begins in the fourth step and has no average; the newest weights are published."""

    def groups(self) -> tuple[ParameterGroup, ...]:
        return (
            ParameterGroup(NEWEST, "generator", loss="generator"),
            ParameterGroup(NEWEST, "discriminator", "discriminator", "discriminator", averaged=False),
        )

    def begin(self, step: int) -> None:
        self.step = step

    def active(self, name: str) -> bool:
        return name == "generator" or self.step >= 3


def test_a_loss_waits_for_its_step_and_the_newest_weights_are_published(trained, training) -> None:
    task = Late(training(weight_ema_decay=0.9, patience=1))
    before = {name: tensor.clone() for name, tensor in task.model.discriminator.state_dict().items()}
    task.interrupt = lambda step: noted.append(
        all(torch.equal(tensor, before[name]) for name, tensor in task.model.discriminator.state_dict().items())
    )
    noted: list[bool] = []
    trainer = trained(task)
    assert noted == [True] * 3 + [False] * 7
    assert ["discriminator" in row for row in trainer.progress.train] == [False] * 3 + [True] * 7
    assert [group.average is not None for group in trainer.groups] == [True, False]
    assert trainer.metrics()["step"] == 10 and len(trainer.progress.validation) == 3
    assert all(row.keys() == {"step", "distance"} for row in trainer.progress.validation)
