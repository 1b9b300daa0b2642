"""Builds quantizers by name. Only the file of the chosen option is imported."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.sections import PACKAGE
from tessera.parameters.parts import class_of


def build_quantizer(config: dict[str, Any], level: int = 0, **arguments: Any) -> Quantizer:
    """Builds the quantizer of one level.

    Args:
        config: {"name": NAME, NAME: {its parameters}}. A `codebook_size` is one number, or a list with one per level.
        level: the number of the level, from 0 for the coarsest.
        arguments: further arguments of the quantizer's class, from a quantizer that has this one inside.
    """
    name, values = config["name"], dict(config[config["name"]])
    if isinstance(values.get("codebook_size"), list | tuple):
        values["codebook_size"] = values["codebook_size"][level]
    if inside := values.pop("quantizer", None):
        values["make"] = partial(build_quantizer, inside, level)
    return class_of(PACKAGE, name, Quantizer)(**values, **arguments)


def commitment_cost(config: dict[str, Any]) -> float:
    """The commitment cost of the quantizer that makes the codes; 0 if it has none."""
    values = config[config["name"]]
    return commitment_cost(values["quantizer"]) if "quantizer" in values else values.get("commitment_cost", 0.0)


def without_commitment(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a commitment cost of 0 wherever there is one: its owner weighs a term of its own."""
    values = dict(config[config["name"]])
    if "quantizer" in values:
        values["quantizer"] = without_commitment(values["quantizer"])
    if "commitment_cost" in values:
        values["commitment_cost"] = 0.0
    return config | {config["name"]: values}


def build_quantizers(config: dict[str, Any], levels: int) -> nn.ModuleList:
    """Builds the quantizers of a model.

    Args:
        config: as for `build_quantizer`. If its key `shared_by_levels` is true, one quantizer serves all levels.
        levels: the number of levels.

    Returns:
        one quantizer per level, coarsest first; or a list of a single quantizer, which all levels share.
    """
    if not config.get("shared_by_levels"):
        return nn.ModuleList(build_quantizer(config, level) for level in range(levels))
    quantizer = build_quantizer(config)
    quantizer.expect_calls(levels)
    return nn.ModuleList([quantizer])
