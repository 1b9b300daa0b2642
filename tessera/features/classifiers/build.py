"""Builds classifiers by the names of their options, and loads published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module, refuse_others, stand_in
from tessera.features.classifiers.base import Classifier
from tessera.features.classifiers.sections import PACKAGE
from tessera.parameters.parts import class_of, parameters_of


def build_classifier(config: dict[str, Any]) -> Classifier:
    """Builds a classifier with newly initialised weights.

    Args:
        config: `name` of the option, `image_shape` (C, H, W), `num_classes`, and the option's own values.
    """
    return class_of(PACKAGE, config["name"], Classifier)(config)


def load_classifier(folder: Path) -> tuple[Classifier | None, Manifest]:
    """The published classifier in evaluation mode on the CPU, or None if the folder says that there is none.

    Returns:
        The classifier, and the folder's manifest; its config.json has the `reason` why there is none.

    Raises:
        UserError: it is missing, damaged, or not a classifier that this version builds.
    """
    model, manifest = load_module(folder, "classifier", _from_file)
    return (model if isinstance(model, Classifier) else None), manifest


def _from_file(config: dict[str, Any]) -> nn.Module:
    """The classifier of a configuration from a file, or a stand-in. Raises ValueError for keys that none has."""
    refuse_others(config, ("available", "classifier", "reason"), "config.json")
    if not config["available"]:
        return stand_in(config)
    values = config["classifier"]
    known = parameters_of(PACKAGE, values["name"]).model_fields
    refuse_others(values, ("name", "image_shape", "num_classes", *known), "classifier")
    return build_classifier(values)
