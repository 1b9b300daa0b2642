"""The VQGAN network: its layers against transformers' copy, its size, and where it has attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from stage1_vqvae.networks.resnet import Attention, Downsample, ResBlock, ResNetwork, Upsample

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
    """The number of parameters of encoder, decoder and the two 1x1 convolutions, from the paper's description."""
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


# The counts equal those of VQModel in diffusers 0.42.1 without its codebook. With the codebook they are the published
# sizes: LlamaGen's README states 72M and 70M.
@pytest.mark.parametrize(
    ("multipliers", "factors", "z", "dim", "peer"),
    [
        ([1, 1, 2, 2, 4], [16], 256, 256, 71_879_555),  # VQGAN, factor 16
        ([1, 2, 4], [], 3, 3, 55_298_206),  # latent diffusion's factor 4, and the rotation trick's 64x64 latent
        ([1, 1, 2, 2, 4], [16], 256, 32, 71_764_643),  # the rotation trick's 16x16 latent
        ([1, 1, 2, 2, 4], [16], 256, 8, 71_752_331),  # LlamaGen's factor 16; its codebook has 131,072 parameters more
        ([1, 2, 2, 4], [8], 256, 8, 69_978_763),  # LlamaGen's factor 8
    ],
)
def test_the_size_is_counted_from_the_description(multipliers, factors, z, dim, peer) -> None:
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
    assert count == expected([128 * m for m in multipliers], 2, attended, z, dim, 3) == peer


def peer_layers(resolutions: nn.ModuleList) -> Iterator[nn.Module]:
    """The layers of one resolution after the other: each block, its attention, and the change of resolution."""
    for resolution in resolutions:
        for index, block in enumerate(resolution.block):
            yield block
            yield from [resolution.attn[index]] if len(resolution.attn) else []
        yield from (layer for name, layer in resolution.named_children() if name.endswith("sample"))


def middle_of(half: nn.Module) -> list[nn.Module]:
    return [half.mid.block_1, half.mid.attn_1, half.mid.block_2]


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies the weights of one layer of the other implementation into ours."""
    state = theirs.state_dict()
    if isinstance(ours, ResBlock):
        names = {"norm1": "first_norm", "norm2": "second_norm", "conv1": "first", "conv2": "second"}
        names["nin_shortcut"] = "shortcut"
        state = {f"{names[n.partition('.')[0]]}.{n.partition('.')[2]}": weight for n, weight in state.items()}
    elif isinstance(ours, Attention):
        state = {n.replace("proj_out", "out"): weight for n, weight in state.items()}
        for kind in ("weight", "bias"):
            state[f"qkv.{kind}"] = torch.cat([state.pop(f"{name}.{kind}") for name in "qkv"])
    ours.load_state_dict(state)


@pytest.mark.parametrize("multipliers", [[1, 2], [1, 1, 2]])
def test_with_the_weights_of_a_peer_it_computes_the_same(multipliers: list[int]) -> None:
    """JanusVQVAE of transformers copies the network of taming-transformers, with attention at the coarsest grid."""
    torch.manual_seed(0)
    sizes = {"base_channels": 32, "channel_multiplier": multipliers, "latent_channels": 6, "embed_dim": 5}
    peer = JanusVQVAE(JanusVQVAEConfig(**sizes, num_res_blocks=2, num_embeddings=2)).double().eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.2)
    factor = 2 ** (len(multipliers) - 1)
    config = {"channels": 32, "multipliers": multipliers, "residual_blocks": 2, "attention_factors": [factor]}
    net = ResNetwork((3, 8, 12), 3, 5, **config, z_channels=6, groups=32, dropout=0.0).double()

    down, up = peer.encoder, peer.decoder
    encoder = [down.conv_in, *peer_layers(down.down), *middle_of(down), down.norm_out, down.conv_out]
    decoder = [up.conv_in, *middle_of(up), *peer_layers(up.up), up.norm_out, up.conv_out]
    for ours, theirs in ((net.encoder, encoder), (net.decoder, [peer.post_quant_conv, *decoder])):
        for pair in zip([layer for layer in ours if not isinstance(layer, nn.SiLU)], theirs, strict=True):
            copy(*pair)
    copy(net.to_codes, peer.quant_conv)

    images, z_q = torch.randn(2, 3, 8, 12).double(), torch.randn(2, 5, 8 // factor, 12 // factor).double()
    with torch.no_grad():
        torch.testing.assert_close(net.latent(0, net.encode(images)[0], None), peer.quant_conv(peer.encoder(images)))
        torch.testing.assert_close(net.decode([z_q]), peer.decoder(peer.post_quant_conv(z_q)))


def test_a_coarser_pixel_sees_three_by_three_from_its_own_two_by_two_on() -> None:
    """Each output pixel sees three input pixels from every second one on, with zeros right of and below the image."""
    down, image = Downsample(1), torch.arange(1.0, 25.0).view(1, 1, 4, 6)
    nn.init.zeros_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    down.conv.weight.data[0, 0, 0, 0], down.conv.weight.data[0, 0, 2, 2] = 1, 100
    after = torch.zeros(2, 3)
    after[0, :2] = image[0, 0, 2, 2::2]
    assert torch.equal(down(image)[0, 0], image[0, 0, ::2, ::2] + 100 * after)


def test_a_finer_pixel_is_a_copy_before_its_convolution() -> None:
    up, image = Upsample(1), torch.randn(1, 1, 2, 3)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    assert torch.equal(up(image)[0, 0], image[0, 0].kron(torch.ones(2, 2)))


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
