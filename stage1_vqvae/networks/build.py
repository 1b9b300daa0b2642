"""Builds networks by name. Only the file of the chosen option is imported."""

from __future__ import annotations

from typing import Any

from stage1_vqvae.networks.base import Network
from tessera.parameters.parts import class_of

PACKAGE = "stage1_vqvae.networks"


def network_class(config: dict[str, Any]) -> type[Network]:
    """The class of a network.

    Args:
        config: {"name": NAME, NAME: {its parameters}}.
    """
    return class_of(PACKAGE, config["name"], Network)


def build_network(
    config: dict[str, Any], image_shape: tuple[int, int, int], outputs: int, codebook_dim: int
) -> Network:
    """Builds a network, which is an encoder and a decoder in one module, with random weights.

    Args:
        config: {"name": NAME, NAME: {its parameters}}.
        image_shape: (C, H, W).
        outputs: the number of channels that the decoder returns for each pixel: the likelihood's parameters.
        codebook_dim: D, the width of z.
    """
    return network_class(config)(image_shape, outputs, codebook_dim, **config[config["name"]])
