"""The VQGAN network: its size, and where its attention is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stage1_vqvae.networks.resnet import Attention, ResNetwork

TINY: dict[str, Any] = {
    "channels": 8,
    "multipliers": [1, 2],
    "residual_blocks": 1,
    "attention_factors": [],
    "z_channels": 4,
    "groups": 4,
    "dropout": 0.0,
}


def conv(kernel: int, inputs: int, outputs: int) -> int:
    return kernel * kernel * inputs * outputs + outputs


def norm(width: int) -> int:
    return 2 * width


def block(inputs: int, outputs: int) -> int:
    shortcut = conv(1, inputs, outputs) if inputs != outputs else 0
    return norm(inputs) + conv(3, inputs, outputs) + norm(outputs) + conv(3, outputs, outputs) + shortcut


def attention(width: int) -> int:
    return norm(width) + 4 * conv(1, width, width)


def middle(width: int) -> int:
    return 2 * block(width, width) + attention(width)


def expected(widths: list[int], blocks: int, attended: set[int], z: int, dim: int, channels: int) -> int:
    """Parameters of encoder, decoder and the two 1x1, counted from the paper's description."""
    encoder, inputs = conv(3, channels, widths[0]), widths[0]
    for i, width in enumerate(widths):
        encoder += block(inputs, width) + (blocks - 1) * block(width, width)
        encoder += blocks * attention(width) if i in attended else 0
        encoder += conv(3, width, width) if i + 1 < len(widths) else 0
        inputs = width
    encoder += middle(widths[-1]) + norm(widths[-1]) + conv(3, widths[-1], z)
    decoder, inputs = conv(3, z, widths[-1]) + middle(widths[-1]), widths[-1]
    for i, width in reversed(list(enumerate(widths))):
        decoder += block(inputs, width) + blocks * block(width, width)
        decoder += (blocks + 1) * attention(width) if i in attended else 0
        decoder += conv(3, width, width) if i else 0
        inputs = width
    return encoder + decoder + norm(widths[0]) + conv(3, widths[0], channels) + conv(1, z, dim) + conv(1, dim, z)


@pytest.mark.parametrize(
    ("multipliers", "factors", "z", "dim", "millions"),
    [
        # The rotation trick's 64x64 latent (and latent diffusion's factor 4); VQGAN's factor 16.
        ([1, 2, 4], [], 3, 3, 55.30),
        ([1, 1, 2, 2, 4], [16], 256, 32, 71.76),
    ],
)
def test_the_size_is_counted_from_the_description(multipliers, factors, z, dim, millions) -> None:
    with torch.device("meta"):
        net = ResNetwork(
            (3, 256, 256),
            3,
            dim,
            channels=128,
            multipliers=multipliers,
            residual_blocks=2,
            attention_factors=factors,
            z_channels=z,
            groups=32,
            dropout=0.0,
        )
    count = sum(p.numel() for p in net.parameters())
    attended = {factor.bit_length() - 1 for factor in factors}
    assert count == expected([128 * m for m in multipliers], 2, attended, z, dim, 3)
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_attention_is_at_the_chosen_factors_and_in_the_middle() -> None:
    seen: list[tuple[int, int]] = []
    net = ResNetwork((3, 16, 24), 3, 2, **{**TINY, "multipliers": [1, 1, 2], "attention_factors": [2]})
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[2:])))
    net.decode([net.latent(0, net.encode(torch.randn(1, 3, 16, 24))[0], None)])
    assert seen == [(8, 12), (4, 6), (4, 6), (8, 12), (8, 12)]


def test_attention_is_softmax_over_all_positions() -> None:
    torch.manual_seed(0)
    layer, x = Attention(8, 4).double(), torch.randn(2, 8, 3, 5).double()
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    weights = (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    torch.testing.assert_close(layer(x), x + layer.out(mixed))


def test_dropout_is_for_training_alone() -> None:
    net = ResNetwork((1, 8, 8), 1, 2, **{**TINY, "dropout": 0.5})
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(net.encode(images)[0], net.encode(images)[0])
    net.eval()
    assert torch.equal(net.encode(images)[0], net.encode(images)[0])
