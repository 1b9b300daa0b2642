"""Builds the terms of an objective. Only the files of the terms that are on are imported."""

from __future__ import annotations

from typing import Any

from torch import nn

from stage1_vqvae.objectives.base import Term
from stage1_vqvae.objectives.sections import PACKAGE
from tessera.parameters.parts import class_of


def build_terms(config: dict[str, Any], channels: int) -> nn.ModuleDict:
    """Builds the terms that are on, with new weights where a term has some.

    Args:
        config: {NAME: {its parameters}} of each term that is on.
        channels: of the images.
    """
    return nn.ModuleDict({name: class_of(PACKAGE, name, Term)(channels, **config[name]) for name in sorted(config)})
