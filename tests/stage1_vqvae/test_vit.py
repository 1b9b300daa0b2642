"""ViT-VQGAN's transformers: positions, attention, size."""

from __future__ import annotations

import torch

from stage1_vqvae.networks.vit import Block, ViTNetwork, sine_positions


def test_positions_tell_every_place_of_a_rectangle_apart_and_near_ones_are_alike() -> None:
    places = sine_positions(5, 9, 32).view(5, 9, 32)
    assert places.flatten(0, 1).unique(dim=0).shape == (45, 32)
    likeness = (places * places[2, 4]).sum(-1)
    assert likeness.argmax() == 2 * 9 + 4
    assert likeness[2, 4] > likeness[2, 5] > likeness[2, 6] and likeness[2, 4] > likeness[3, 4] > likeness[4, 4]


def test_without_positions_the_transformer_would_not_know_places() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 4, 2, 0.0).double(), torch.randn(2, 7, 16).double()
    order = torch.randperm(7)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))
    net = ViTNetwork((1, 8, 12), 1, 3, patch=4, width=16, layers=1, heads=2, mlp_ratio=2, dropout=0.0)
    features = net.encode(torch.ones(1, 1, 8, 12))[0]  # equal patches, told apart by their places
    assert len(features[0].flatten(1).t().unique(dim=0)) == 6


def test_a_patch_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    net = ViTNetwork((1, 8, 8), 1, 3, patch=4, width=16, layers=1, heads=2, mlp_ratio=2, dropout=0.0)
    images = torch.randn(1, 1, 8, 8, requires_grad=True)
    (net.encode(images)[0][0, :, 1, 1] * torch.randn(16)).sum().backward()
    assert (images.grad.abs() > 0).all()


def test_the_size_is_counted_from_the_description() -> None:
    width, layers, ratio, patch, dim, outputs = 16, 3, 4, 2, 5, 7
    sizes = {"patch": patch, "width": width, "layers": layers, "heads": 2, "mlp_ratio": ratio, "dropout": 0.0}
    net = ViTNetwork((3, 4, 4), outputs, dim, **sizes)
    attention = 3 * width * width + 3 * width + width * width + width
    mlp = 2 * ratio * width * width + ratio * width + width
    transformer = layers * (attention + mlp + 4 * width) + 2 * width
    patches = 3 * patch**2 * width + width + outputs * patch**2 * width + outputs
    codes = width * dim + dim + dim * width + width
    assert sum(p.numel() for p in net.parameters()) == 2 * transformer + patches + codes
