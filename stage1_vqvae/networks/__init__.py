"""Networks by name. To add one: a file with a class of conv.py's contract, its parameters, and a line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from stage1_vqvae.networks.conv import ConvNetwork
from stage1_vqvae.networks.resnet import ResNetwork
from stage1_vqvae.networks.vit import ViTNetwork

NETWORKS = {"conv": ConvNetwork, "resnet": ResNetwork, "vit": ViTNetwork}


def build_network(
    config: dict[str, Any], image_shape: tuple[int, int, int], outputs: int, codebook_dim: int
) -> nn.Module:
    """The network named in `config`, for images (C, H, W), likelihood channels and code width."""
    name = config["name"]
    return NETWORKS[name](image_shape, outputs, codebook_dim, **config[name])
