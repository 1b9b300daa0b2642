"""Training with an adversarial term: whose gradient goes where, the adaptive weight, micro-batches and NaN."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adversarial_terms import ADVERSARIAL, PATCH, SHAPE, pictures
from tiny_features import TinyFeatures
from torch import nn

from stage1_vqvae.objective import DELTA, GENERATOR, Objective, adaptive_factors
from stage1_vqvae.objectives import frozen
from stage1_vqvae.quantizers.output import QuantizerOutput
from stage1_vqvae.sharpening import SharpTask
from tessera.launch.devices import accelerator
from tessera.parameters import Params
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import NEWEST


class Plain(nn.Module):
    """What an objective and its task ask of a VQ-VAE, in float64: a linear encoder, and a decoder of two layers."""

    has_likelihood, stochastic, re_estimated_parameters = False, False, frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.layout = SimpleNamespace(image_shape=SHAPE)
        self.encoder, self.network = nn.Conv2d(1, 4, 4, stride=4), nn.Module()
        self.network.first, self.network.last_layer = nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(6, 1, 4, stride=4)
        self.likelihood = SimpleNamespace(mean=lambda parameters: parameters)
        self.decoded = 0

    def quantize_for_decoder(
        self, images: torch.Tensor, seeds: None = None
    ) -> tuple[list[QuantizerOutput], list[torch.Tensor]]:
        z = self.encoder(images)
        return [QuantizerOutput(z, z.new_zeros(()), z.square().mean(), None, None)], [z]

    def decode_inputs(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        self.decoded += 1
        return self.network.last_layer(self.network.first(inputs[0]).tanh())

    def distortion(self, parameters: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(parameters, images)

    def update(self, step: int, seed: int) -> dict[str, torch.Tensor]:
        return {}

    def discard(self) -> None:
        pass


@pytest.fixture
def trainer(in_tmp: Any, params: Callable[..., Params]) -> Callable[..., Trainer]:
    """`trainer(adaptive=False)`: a trainer of a plain model in float64 and a discriminator, before its first step."""

    def make(steps: int = 10, micro_batch: int | None = None, perceptual: Any = None, **changes: Any) -> Trainer:
        training = {"steps": steps, "batch_size": 8, "warmup_steps": 0, "weight_ema_decay": 0.9}
        found = params(
            {f"stage1_vqvae.training.{name}": value for name, value in training.items()}
            | {"runtime.micro_batch": micro_batch, "runtime.threads": 1, "runtime.log_every": 1}
        )
        torch.manual_seed(0)
        others = {"perceptual": perceptual} if perceptual else {}
        model = Objective(Plain(), {"adversarial": ADVERSARIAL | changes} | others).double()
        section = found.stage1_vqvae
        task = SharpTask(model, pictures(), pictures(), section.training, section.augmentation)
        state = StateFolder("test", "run", exclusive=False)
        made = Trainer(task, section.training, found.runtime, accelerator(found.runtime), state)
        task.model.train()
        return made

    return make


def doubles(step: int = 0) -> dict[str, torch.Tensor]:
    return {"images": torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 2 - 1}


def named_gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_each_side_gets_its_own_losss_gradient_and_nothing_of_the_others(trainer: Callable[..., Trainer]) -> None:
    made = trainer()
    stepper, objective = made.stepper, made.task.model
    vqvae, discriminator = objective.vqvae, objective.terms["adversarial"].discriminator
    made.task.begin(3)  # the second step of the discriminator, where the term has half its weight
    images = doubles()["images"]

    stepper._backward(GENERATOR, 3, {"images": images})
    first, none = named_gradients(vqvae), named_gradients(discriminator)
    assert vqvae.decoded == 1 and none == {}
    stepper._backward("discriminator", 3, {"images": images})
    assert vqvae.decoded == 1, "the step's reconstructions are made once"
    for name, gradient in named_gradients(vqvae).items():
        assert torch.equal(gradient, first[name]), name
    second = named_gradients(discriminator)

    # Each loss by itself, written out and differentiated for its own parameters alone.
    (output,), inputs = vqvae.quantize_for_decoder(images)
    rebuilt = vqvae.decode_inputs(inputs)
    distortion, deceit = F.mse_loss(rebuilt, images), -discriminator(rebuilt)[0].mean()
    weight = vqvae.network.last_layer.weight
    norms = [torch.autograd.grad(each, weight, retain_graph=True)[0].norm() for each in (distortion, deceit)]
    factor = norms[0] / (norms[1] + DELTA)
    loss = distortion + 0.7 * 0.5 * factor * deceit + output.loss
    for name, parameter in vqvae.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        torch.testing.assert_close(first[name], expected, rtol=1e-10, atol=1e-13, msg=name)
    real, fake = discriminator(images)[0], discriminator(rebuilt.detach())[0]
    loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    assert second
    for name, parameter in discriminator.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        torch.testing.assert_close(second[name], expected, rtol=1e-10, atol=1e-13, msg=name)


def test_the_adaptive_factor_is_bounded_and_is_of_the_terms_that_ask_for_it() -> None:
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    fixed, term, still = (weight**2).sum(), weight.sum(), (0 * weight).sum()
    found = adaptive_factors(fixed, [term, still], weight)
    assert found[0].item() == pytest.approx(10 / (2**0.5 + 1e-4)) and found[1].item() == 1e4
    assert adaptive_factors(fixed, [], weight) == []


def test_before_its_start_the_discriminator_rests_and_then_its_term_grows(trainer: Callable[..., Trainer]) -> None:
    made = trainer()
    term = made.task.model.terms["adversarial"]
    before = {name: tensor.clone() for name, tensor in term.state_dict().items()}
    ramps = []
    for step in range(6):
        if step == 2:
            assert all(torch.equal(tensor, before[name]) for name, tensor in term.state_dict().items())
        made.stepper.take(step, doubles(step), made.progress)
        ramps.append(term.ramp(step))
    assert ramps == [0, 0, 0.25, 0.5, 0.75, 1]
    rows = made.progress.train
    assert (
        ["discriminator" in row for row in rows] == ["adversarial" in row for row in rows] == 2 * [False] + 4 * [True]
    )
    moved = [name for name, p in term.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) >= 5  # at first the hinge loss is linear, and both kinds of images cancel in the last bias


def test_only_the_decoder_is_averaged_and_the_discriminator_has_its_own_optimizer(
    trainer: Callable[..., Trainer],
) -> None:
    generator, discriminator = trainer().groups
    assert (generator.name, discriminator.name) == (GENERATOR, "discriminator")
    assert set(generator.average.weights) == set(generator.parameters) and discriminator.average is None
    assert all(name.startswith("vqvae.") for name in generator.parameters)
    assert discriminator.settings.betas == (0.5, 0.9) and discriminator.settings.learning_rate_factor == 0.5
    assert {part["weight_decay"] for part in discriminator.optimizer.param_groups} == {0.0}
    assert generator.settings.criterion == discriminator.settings.criterion == NEWEST


@pytest.mark.parametrize("regulariser", ["lecam", "r1"])
def test_micro_batches_give_the_gradient_and_the_anchors_of_the_whole_batch(
    trainer: Callable[..., Trainer], regulariser: str
) -> None:
    changes = {"adaptive": False, "regulariser": {"name": regulariser, "weight": 0.1, "decay": 0.9}}
    found = []
    for micro_batch in (None, 3):
        made = trainer(micro_batch=micro_batch, **changes)
        for step in range(2, 5):
            made.stepper.take(step, doubles(step), made.progress)
        found.append(made.task.model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    assert regulariser != "lecam" or found[0]["terms.adversarial.anchors.means"].abs().min() > 0


def test_random_parts_are_the_same_in_pieces_and_after_resuming(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a perceptual term, and of a projected discriminator whose features are matched."""
    monkeypatch.setattr(frozen, "build_features", lambda params: TinyFeatures().freeze())
    features = {"name": "tiny", "tiny": {}}
    projected = {"channels": 4, "part": 5, "matching": 2.0, "features": features}
    changes = {"adaptive": False, "discriminator": {"name": "projected", "projected": projected}}
    perceptual = {"weight": 0.5, "depth_factor": 1.0, "part": 4, "features": features}
    found, columns, halfway = [], [], ()
    for micro_batch, first in ((None, 0), (3, 0), (None, 5)):  # whole, in pieces, and killed after five steps
        made = trainer(micro_batch=micro_batch, perceptual=perceptual, **changes)
        if first:
            made.task.model.load_state_dict(halfway[0])
            for group, state in zip(made.groups, halfway[1], strict=True):
                group.optimizer.load_state_dict(state)
        for step in range(first, 8):
            if step == 5 and not found:
                states = [deepcopy(group.optimizer.state_dict()) for group in made.groups]
                halfway = deepcopy(made.task.model.state_dict()), states
            torch.rand(first)  # what was drawn before does not matter
            made.stepper.take(step, doubles(step), made.progress)
        found.append(made.task.model.state_dict())
        columns.append([row["adversarial"] for row in made.progress.train if "adversarial" in row])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
        assert torch.equal(found[2][name], tensor), name
    row = made.progress.train[-1]
    terms = 0.7 * (row["adversarial"] + row["adversarial_matching"]) + 0.5 * row["perceptual"]
    assert row["generator"] == pytest.approx(row["distortion"] + row["quantizer_loss"] + terms)
    assert columns[1] == pytest.approx(columns[0]) and columns[2] == columns[0][-3:]


def test_what_looks_at_a_whole_batch_is_refused_in_pieces(trainer: Callable[..., Trainer]) -> None:
    batch_norm = {"name": "patch", "patch": {**PATCH["patch"], "norm": "batch"}}
    for changes, said in (({}, "adaptive"), ({"adaptive": False, "discriminator": batch_norm}, "batch norm")):
        with pytest.raises(Exception, match=f"micro_batch: 3: .*{said}"):
            trainer(micro_batch=3, **changes)


def test_a_step_without_finite_gradients_changes_neither_side(trainer: Callable[..., Trainer]) -> None:
    made = trainer(regulariser={"name": "lecam", "weight": 0.1, "decay": 0.9})
    for step in range(2, 4):
        made.stepper.take(step, doubles(step), made.progress)
    before = {name: tensor.clone() for name, tensor in made.task.model.state_dict().items()}
    made.stepper.take(4, {"images": doubles(4)["images"] * float("nan")}, made.progress)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.task.model.state_dict().items())
    assert made.progress.skipped == {GENERATOR: 1, "discriminator": 1}
