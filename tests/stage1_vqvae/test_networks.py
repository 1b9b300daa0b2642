"""Properties that every network must have, checked for every file of stage1_vqvae/networks that is an option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stage1_vqvae.networks.base import Network
from stage1_vqvae.networks.build import PACKAGE, build_network, network_class
from tessera.parameters.parts import options

# Changes of an option's section in params.yaml that make the network small. An option without an entry is tested with
# the section as it stands there.
SMALL: dict[str, dict[str, Any]] = {
    "conv": {"channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4},
    "resnet": {"channels": 8, "multipliers": [1, 2, 2], "attention_factors": [4], "z_channels": 6, "groups": 4},
    "vit": {"patch": 4, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, SMALL.get(name, {})) for name in options(PACKAGE)}
CASES |= {
    "conv of two levels": ("conv", SMALL["conv"] | {"strides": [2, 2]}),
    "conv of two levels with shortcuts": ("conv", SMALL["conv"] | {"strides": [2, 2], "shortcut": True}),
}
SHAPES = [(1, 2, 2), (3, 2, 4), (3, 5, 3)]  # channels, and height and width in units of the network's factor
Build = Callable[..., tuple[Network, torch.Tensor, list[tuple[int, int]]]]


@pytest.fixture
def build(params: Callable, raw_params: dict[str, Any]) -> Build:
    """A network built from validated parameters, two random images for it, and the grids that it announces."""

    def make(case: str, shape: tuple[int, int, int] = (3, 2, 4), outputs: int = 5, width: int = 3):
        name, changes = CASES[case]
        section = raw_params["stage1_vqvae"]["network"]
        section["name"] = name
        section[name] |= changes
        raw_params["data"] |= {"height": 2**10, "width": 2**10}  # divisible by any factor; the shape is chosen below
        chosen = params().stage1_vqvae.network
        channels, height, columns = shape
        image_shape = (channels, height * chosen.chosen.factor, columns * chosen.chosen.factor)
        torch.manual_seed(0)
        config = chosen.values()
        net = build_network(config, image_shape, outputs, width)
        return net, torch.randn(2, *image_shape), network_class(config).grids_of(image_shape, **config[name])

    return make


def run(net: Network, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """z of every level, and the decoder's output for these z without quantization."""
    features, context, zs = net.encode(images), None, []
    for level, feature in enumerate(features):
        if level:
            context = net.context(level - 1, zs[-1], context)
        zs.append(net.latent(level, feature, context))
    return zs, net.decode(zs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_grids_and_outputs_fit_any_rectangle(build: Build, case: str, shape: tuple[int, int, int]) -> None:
    net, images, grids = build(case, shape)
    zs, decoded = run(net, images)
    assert [tuple(z.shape) for z in zs] == [(2, 3, h, w) for h, w in grids]
    assert grids == sorted(grids), "levels are in order, the coarsest first"
    assert decoded.shape == (2, 5, *images.shape[2:])


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_reaches_every_parameter(build: Build, case: str) -> None:
    net, images, _ = build(case)
    run(net, images)[1].square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("case", CASES)
def test_channels_last_changes_nothing(build: Build, case: str) -> None:
    net, images, _ = build(case)
    plain = run(net, images)[1]
    net = net.to(memory_format=torch.channels_last)
    last = run(net, images.to(memory_format=torch.channels_last))[1]
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_image_is_the_same_in_any_batch(build: Build, case: str) -> None:
    net, images, _ = build(case)
    net.eval()
    torch.testing.assert_close(run(net, images)[1][1:], run(net, images[1:])[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_training_on_one_batch_lowers_its_error(build: Build, case: str) -> None:
    net, images, _ = build(case, outputs=3)
    size = tuple(images.shape[2:])
    images = torch.nn.functional.interpolate(torch.rand(8, 3, 2, 4) * 2 - 1, size, mode="bilinear")
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(140):
        error = (run(net, images)[1] - images).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.4 * images.var()  # images of one colour each would leave 1 times the variance
