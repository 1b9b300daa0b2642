"""The task that trains a VQ-VAE, with terms or without, and the one that trains its decoder on from extracted codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adversarial_terms import ADVERSARIAL, SHAPE, pictures
from torch import nn

from stage1_vqvae.objective import Objective
from stage1_vqvae.sharpening import DecoderTask, SharpTask, decoder_parameters, task_of
from stage1_vqvae.task import VQVAETask
from tessera.images.pixels import to_float
from tessera.parameters import Params


def small(params: Callable[..., Params], **changes: Any) -> Params:
    conv = "stage1_vqvae.network.conv."
    sizes = {"channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4}
    return params({conv + name: value for name, value in sizes.items()} | changes)


def vqvae_of(found: Params) -> Any:
    from stage1_vqvae.model import VQVAE

    config = {"image_shape": list(SHAPE), "data_variance": 0.3, **found.stage1_vqvae.model()}
    torch.manual_seed(0)
    return VQVAE(config)


def test_without_a_term_the_task_is_the_likelihoods(params: Callable[..., Params]) -> None:
    found = small(params)
    task = task_of(found.stage1_vqvae, vqvae_of(found), pictures(), pictures())
    assert type(task) is VQVAETask and dict(task.losses) == {"loss": 1.0} and task.model is task.vqvae
    assert task.vqvae.has_likelihood and "objective" not in task.vqvae.config


def test_with_a_term_the_vqvae_begins_with_the_same_weights_and_has_no_likelihood(
    params: Callable[..., Params],
) -> None:
    plain = vqvae_of(small(params))
    found = small(params, **{"stage1_vqvae.objective.adversarial.weight": 0.5})
    task = task_of(found.stage1_vqvae, vqvae_of(found), pictures(), pictures())
    assert type(task) is SharpTask and not task.vqvae.has_likelihood
    assert all(torch.equal(tensor, task.vqvae.state_dict()[name]) for name, tensor in plain.state_dict().items())
    figures = task.validate()
    assert {"distortion", "nmse", "objective", "codebook_usage"} <= figures.keys()
    assert not [name for name in figures if name.startswith("bits")]


@pytest.mark.parametrize("network", ["conv", "two levels", "resnet", "vit"])
def test_the_decoders_parameters_are_those_that_no_code_depends_on(
    params: Callable[..., Params], choose_network: Callable[[str], None], network: str
) -> None:
    choose_network(network)
    found = params({"stage1_vqvae.quantizer.codebook_size": 8, "stage1_vqvae.quantizer.codebook_dim": 4})
    model = vqvae_of(found)
    trained = decoder_parameters(model)
    images = torch.rand(2, *SHAPE) * 2 - 1
    codes, before = model.eval().encode(images), model.decode(model.encode(images))
    for name, parameter in model.named_parameters():
        if name in trained:
            nn.init.normal_(parameter, std=0.3)
    assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(images), strict=True))
    assert not torch.equal(model.decode(codes), before)
    assert model.network.last_layer.weight is dict(model.named_parameters())[f"network.{last_name(model)}.weight"]
    assert f"network.{last_name(model)}.weight" in trained
    assert not [name for name in trained if "encoder" in name or "latents" in name or "to_codes" in name]


def last_name(model: Any) -> str:
    return next(name for name, module in model.network.named_modules() if module is model.network.last_layer)


def test_a_decoder_is_trained_from_the_codes_of_extraction_and_leaves_them(params: Callable[..., Params]) -> None:
    found = small(params)
    model = vqvae_of(found)
    model.config["objective"] = {"adversarial": ADVERSARIAL}
    task = DecoderTask(
        Objective(model, model.config["objective"]),
        pictures(),
        pictures(),
        found.stage1_vqvae.training,
        found.stage1_vqvae.augmentation,
    )
    task.model.train()
    batch = task.batch(0, slice(0, 4))
    inputs = task.inputs(batch)
    assert model.training
    codes = model.eval().encode(to_float(batch["images"]))
    assert torch.equal(inputs["quantized"][0], model.quantizer_of(0).lookup(codes[0]).permute(0, 3, 1, 2))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and frozen == {name for name, _ in model.named_parameters()} - decoder_parameters(vqvae_of(found))
    assert set(task.validate()) == {"distortion", "nmse", "objective"}
