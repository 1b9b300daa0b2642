"""Builds discriminators by name. Only the file of the chosen option is imported."""

from __future__ import annotations

from typing import Any

from stage1_vqvae.discriminators.base import Discriminator
from stage1_vqvae.discriminators.sections import PACKAGE
from tessera.parameters.parts import class_of


def build_discriminator(config: dict[str, Any], channels: int) -> Discriminator:
    """Builds a discriminator with new weights.

    Args:
        config: {"name": NAME, NAME: {its parameters}}.
        channels: of the images.
    """
    return class_of(PACKAGE, config["name"], Discriminator)(channels, **config[config["name"]])
