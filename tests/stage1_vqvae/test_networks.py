"""What every network owes: any rectangle, 1 or 3 channels, gradients everywhere, the layout of memory no matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stage1_vqvae.networks import NETWORKS

CONFIGS: dict[str, dict[str, Any]] = {
    "conv": {"strides": [2, 2], "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4},
    "conv with shortcuts": {
        **{"strides": [2, 2], "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4},
        "shortcut": True,
    },
    "resnet": {
        "channels": 8,
        "multipliers": [1, 2, 2],
        "residual_blocks": 1,
        "attention_factors": [4],
        "z_channels": 6,
        "groups": 4,
        "dropout": 0.0,
    },
    "vit": {"patch": 4, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2, "dropout": 0.0},
}
SHAPES = [(1, 8, 8), (3, 8, 16), (3, 20, 12)]


def network(name: str, shape: tuple[int, int, int], outputs: int = 5, codebook_dim: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(name)(shape, outputs, codebook_dim, **CONFIGS[name])


def kind(name: str) -> type[torch.nn.Module]:
    return NETWORKS[name.split()[0]]


def run(net: torch.nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """z of every level, and what they decode to when nothing is quantized."""
    features, context, zs = net.encode(images), None, []
    for level, feature in enumerate(features):
        zs.append(net.latent(level, feature, context))
        context = net.context(level, zs[-1])
    return zs, net.decode(zs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_grids_and_outputs_fit_any_rectangle(name: str, shape: tuple[int, int, int]) -> None:
    net = network(name, shape)
    zs, decoded = run(net, torch.randn(2, *shape))
    assert net.grids == kind(name).grids_of(shape, **CONFIGS[name])
    assert [tuple(z.shape) for z in zs] == [(2, 3, h, w) for h, w in net.grids]
    assert net.grids[-1] == (shape[1] // (2 if "conv" in name else 4), shape[2] // (2 if "conv" in name else 4))
    assert decoded.shape == (2, 5, *shape[1:])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    net = network(name, (3, 8, 16))
    run(net, torch.randn(2, 3, 8, 16))[1].square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_channels_last_changes_nothing(name: str) -> None:
    images = torch.randn(2, 3, 8, 16)
    plain = run(network(name, (3, 8, 16)), images)[1]
    net = network(name, (3, 8, 16)).to(memory_format=torch.channels_last)
    last = run(net, images.to(memory_format=torch.channels_last))[1]
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    net, images = network(name, (3, 8, 16)).eval(), torch.randn(4, 3, 8, 16)
    torch.testing.assert_close(run(net, images)[1][2:3], run(net, images[2:3])[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_on_one_batch_lowers_its_error(name: str) -> None:
    net = network(name, (3, 8, 16), outputs=3)
    images = torch.nn.functional.interpolate(torch.rand(8, 3, 2, 4) * 2 - 1, (8, 16), mode="bilinear")
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        error = (run(net, images)[1] - images).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.4 * images.var()  # of 1, what images of one colour would leave
