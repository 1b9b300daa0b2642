"""Builds a network by name."""

from __future__ import annotations

from typing import Any

from stage1_vqvae.networks.base import Network
from tessera.parameters.parts import class_of

PACKAGE = "stage1_vqvae.networks"


def network_class(config: dict[str, Any]) -> type[Network]:
    """The class of the network of {"name": NAME, NAME: {its parameters}}."""
    return class_of(PACKAGE, config["name"], Network)


def build_network(
    config: dict[str, Any], image_shape: tuple[int, int, int], outputs: int, codebook_dim: int
) -> Network:
    """A network, newly initialised, for images (C, H, W), channels of the likelihood's parameters and code width."""
    return network_class(config)(image_shape, outputs, codebook_dim, **config[config["name"]])
