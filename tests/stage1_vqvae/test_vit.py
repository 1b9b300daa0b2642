"""The ViT-VQGAN network: positions, attention and size."""

from __future__ import annotations

import torch
from torch import nn

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
    features = net.encode(torch.ones(1, 1, 8, 12))[0]  # equal patches, which differ in their positions alone
    assert len(features[0].flatten(1).t().unique(dim=0)) == 6


def test_a_block_is_the_field_s_pre_norm_layer() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 4, 2, 0.0).double().eval(), torch.randn(2, 7, 16).double()
    peer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True).double().eval()
    for ours, theirs in (
        (block.attention_norm, peer.norm1),
        (block.mlp_norm, peer.norm2),
        (block.out, peer.self_attn.out_proj),
        (block.mlp[0], peer.linear1),
        (block.mlp[2], peer.linear2),
    ):
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours.load_state_dict(theirs.state_dict())
    block.qkv.load_state_dict({"weight": peer.self_attn.in_proj_weight, "bias": peer.self_attn.in_proj_bias})
    torch.testing.assert_close(block(x), peer(x))


def test_a_transformer_has_the_published_size_of_vit_base() -> None:
    """Table 1 of Dosovitskiy et al. 2021 states 86M. Layers and last norm of torchvision's vit_b_16 have 85,056,000."""
    with torch.device("meta"):
        net = ViTNetwork((3, 256, 256), 3, 32, patch=8, width=768, layers=12, heads=12, mlp_ratio=4, dropout=0.0)
    assert sum(p.numel() for p in net.encoder.parameters()) == 85_056_000


def test_dropout_is_for_training_alone() -> None:
    net = ViTNetwork((1, 8, 8), 1, 3, patch=4, width=16, layers=1, heads=2, mlp_ratio=2, dropout=0.5)
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(net.encode(images)[0], net.encode(images)[0])
    net.eval()
    assert torch.equal(net.encode(images)[0], net.encode(images)[0])


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
