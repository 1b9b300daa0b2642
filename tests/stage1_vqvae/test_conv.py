"""The convolutional network: shapes of every level, and the published network's parameters."""

from __future__ import annotations

import pytest
import torch

from stage1_vqvae.networks.build import build_network
from stage1_vqvae.networks.conv import ConvNetwork


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(shape: tuple[int, int, int], strides: list[int], outputs: int = 3, width: int = 5) -> ConvNetwork:
    conv = {"strides": strides, "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4}
    return build_network({"name": "conv", "conv": conv}, shape, outputs, width)


CASES = [
    ((3, 8, 8), [2], [(4, 4)]),
    ((1, 8, 16), [4], [(2, 4)]),
    ((3, 16, 8), [8], [(2, 1)]),
    ((3, 16, 24), [4, 2], [(2, 3), (4, 6)]),
    ((1, 16, 8), [2, 4], [(2, 1), (8, 4)]),
    ((3, 24, 16), [2, 2, 2], [(3, 2), (6, 4), (12, 8)]),
]


@pytest.mark.parametrize(("shape", "strides", "grids"), CASES)
def test_levels_have_their_shapes_coarsest_first(
    shape: tuple[int, int, int], strides: list[int], grids: list[tuple[int, int]]
) -> None:
    net = network(shape, strides, outputs=7)
    assert net.grids_of(shape, strides=strides) == grids
    features = net.encode(torch.randn(2, *shape))
    quantized, context = [], None
    for level, (height, width) in enumerate(grids):
        z = net.latent(level, features[level], context)
        assert z.shape == (2, 5, height, width)
        quantized.append(z)
        if level + 1 < len(grids):
            context = net.context(level, z, context)
            assert context.shape[-2:] == grids[level + 1]
    assert net.decode(quantized).shape == (2, 7, *shape[1:])


@pytest.mark.parametrize(("shape", "strides"), [((3, 8, 8), [2]), ((3, 16, 8), [4, 2]), ((1, 16, 16), [2, 2, 2])])
def test_every_parameter_is_used(shape: tuple[int, int, int], strides: list[int]) -> None:
    net = network(shape, strides)
    features = net.encode(torch.randn(2, *shape))
    quantized, context = [], None
    for level, feature in enumerate(features):
        if level:
            context = net.context(level - 1, quantized[-1], context)
        quantized.append(net.latent(level, feature, context))
    net.decode(quantized).square().sum().backward()
    unused = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []


def test_a_finer_level_depends_on_the_coarser_code() -> None:
    net = network((3, 16, 16), [2, 2])
    features = net.encode(torch.randn(1, 3, 16, 16))
    coarse = torch.randn(1, 5, 4, 4)
    fine = net.latent(1, features[1], net.context(0, coarse, None))
    assert not torch.allclose(fine, net.latent(1, features[1], net.context(0, coarse + 1, None)))


def test_the_published_cifar_network_has_its_number_of_parameters() -> None:
    """The count follows the layers of the public PyTorch notebook of the 2017 paper.

    They are 4x4 3->64, 4x4 64->128, 3x3 128->128, twice (3x3 128->32, 1x1 32->128), 1x1 128->64, and the mirror image.
    All convolutions have a bias, except those in residual blocks.
    """

    def conv(size: int, inputs: int, outputs: int, bias: bool = True) -> int:
        return size * size * inputs * outputs + bias * outputs

    stack = 2 * (conv(3, 128, 32, bias=False) + conv(1, 32, 128, bias=False))
    encoder = conv(4, 3, 64) + conv(4, 64, 128) + conv(3, 128, 128) + stack
    decoder = conv(3, 64, 128) + stack + conv(4, 128, 64) + conv(4, 64, 3)
    net = ConvNetwork(
        (3, 32, 32), 3, 64, strides=[4], channels=128, stem_channels=64, residual_blocks=2, residual_channels=32
    )
    assert sum(p.numel() for p in net.parameters()) == encoder + conv(1, 128, 64) + decoder == 662_083
    kinds = [
        (m.kernel_size[0], m.stride[0], m.in_channels, m.out_channels) for m in net.decoder if hasattr(m, "stride")
    ]
    assert kinds == [(3, 1, 64, 128), (4, 2, 128, 64), (4, 2, 64, 3)]


def test_no_residual_blocks_are_possible() -> None:
    net = ConvNetwork((1, 8, 8), 1, 4, strides=[2], channels=4, stem_channels=2, residual_blocks=0, residual_channels=1)
    assert net.decode([net.latent(0, net.encode(torch.zeros(1, 1, 8, 8))[0], None)]).shape == (1, 1, 8, 8)


def test_shortcuts_alone_are_a_linear_code_of_patches() -> None:
    """All other layers are set to 0. The encoder is then an orthonormal projection of each patch."""
    net = ConvNetwork(
        (3, 8, 16),
        3,
        12,
        **{"strides": [4], "channels": 4, "stem_channels": 2, "residual_blocks": 1, "residual_channels": 1},
        shortcut=True,
    )
    with torch.no_grad():
        for part in (net.latents, net.decoder):
            for parameter in part.parameters():
                parameter.zero_()
        net.shortcuts[0].bias.zero_()
        net.decoder_shortcut.bias.zero_()
        net.decoder_shortcut.weight.copy_(net.shortcuts[0].weight)
    images = torch.randn(2, 3, 8, 16)
    z = net.latent(0, net.encode(images)[0], None)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)  # (B, 2, 4, 48)
    basis = net.shortcuts[0].weight.view(12, 48)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.permute(0, 2, 3, 1), patches @ basis.t(), atol=1e-5, rtol=1e-4)
    back = net.decode([z]).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    torch.testing.assert_close(back, patches @ basis.t() @ basis, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("strides", "places"), [([2], [2]), ([8], [3, 5, 6])])
def test_added_blocks_come_at_each_resolution_and_begin_as_the_identity(strides: list[int], places: list[int]) -> None:
    sizes = {"strides": strides, "channels": 8, "stem_channels": 4, "residual_blocks": 1, "residual_channels": 4}
    plain = ConvNetwork((3, 16, 8), 3, 5, **sizes)
    larger = ConvNetwork((3, 16, 8), 3, 5, **sizes, added_blocks=2)
    missing, unexpected = larger.load_state_dict(plain.state_dict(), strict=False)
    assert [int(place) for place in larger.added] == places and not unexpected
    assert len(missing) == 2 * 4 * len(places) and all(name.startswith("added.") for name in missing)
    z = torch.randn(2, 5, 16 // strides[0], 8 // strides[0])
    same = larger.decode([z])
    assert torch.equal(same, plain.decode([z]))
    same.sum().backward()
    for name, parameter in larger.added.named_parameters():
        if "narrow" in name:  # learns at once; the layer before it has a gradient from the second step on
            assert parameter.grad.abs().sum() > 0
            torch.nn.init.normal_(parameter)
    assert not torch.equal(larger.decode([z]), plain.decode([z]))
