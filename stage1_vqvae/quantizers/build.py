"""Builds quantizers by name. An option's file is imported when it is chosen, and no other."""

from __future__ import annotations

from typing import Any

from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.sections import PACKAGE
from tessera.parameters.parts import class_of


def build_quantizer(config: dict[str, Any], level: int = 0, **given: Any) -> Quantizer:
    """The quantizer of a level.

    Args:
        config: {"name": NAME, NAME: {its parameters}}; a `codebook_size` may be one number or one per level.
        given: further arguments, from a quantizer that has this one inside.
    """
    name, values = config["name"], dict(config[config["name"]]) | given
    if isinstance(values.get("codebook_size"), list | tuple):
        values["codebook_size"] = values["codebook_size"][level]
    family = class_of(PACKAGE, name, Quantizer)
    if inside := values.pop("quantizer", None):
        arguments = family.inside(class_of(PACKAGE, inside["name"], Quantizer))
        values["make"] = lambda: build_quantizer(inside, level, **arguments)
    return family(**values)


def build_quantizers(config: dict[str, Any], levels: int) -> nn.ModuleList:
    """One quantizer for each level, coarsest first."""
    return nn.ModuleList(build_quantizer(config, level) for level in range(levels))
