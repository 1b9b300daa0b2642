"""Builds likelihoods by name. Only the file of the chosen option is imported."""

from __future__ import annotations

from typing import Any

from stage1_vqvae.likelihoods.base import Likelihood
from tessera.parameters.parts import class_of

PACKAGE = "stage1_vqvae.likelihoods"


def build_likelihood(config: dict[str, Any]) -> Likelihood:
    """Builds a likelihood.

    Args:
        config: {"name": NAME, NAME: {its parameters}}.
    """
    return class_of(PACKAGE, config["name"], Likelihood)(**config[config["name"]])
