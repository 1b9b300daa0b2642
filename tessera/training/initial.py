"""Begins a training with the weights of a published model, in place of random ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_model
from tessera.errors import UserError


def begin_with(
    model: nn.Module, folder: Path, kind: str, where: str, agrees: dict[str, Any], adapted: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Manifest]:
    """Copies the weights of a published model into a new one.

    Args:
        model: new, on the CPU.
        folder: the published model.
        kind: the kind of model that the folder must hold, `vqvae` or `prior`.
        where: the parameter that names the folder, for messages.
        agrees: a nested dictionary. The published configuration must have the same values under the same keys; its
            other keys may have any value.
        adapted: names of tensors that are not copied, because the caller fills them in. Either model may lack them or
            have another shape.

    Returns:
        The published model's configuration, its tensors and its manifest.

    Raises:
        UserError: the folder is missing or damaged or of another kind, or a value of `agrees` or a tensor's shape
            differs. The first difference is named, and nothing is copied.
    """
    config, tensors, manifest = load_model(folder, kind)
    advice = "give both the same parameters, or set it to null"
    for path, there, here in differences(config, agrees):
        raise UserError(f"{where}: the model in {folder} has {path} {there}, and this training {here}; {advice}")
    state = model.state_dict()
    for name in sorted({*state, *tensors} - adapted):
        there, here = (list(found[name].shape) if name in found else "none" for found in (tensors, state))
        if there != here:
            raise UserError(f"{where}: {folder}: the shape of {name} is {there}, expected {here}; {advice}")
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in adapted}, strict=False)
    return config, tensors, manifest


@contextmanager
def adapting(folder: Path, where: str) -> Iterator[None]:
    """A context in which a published configuration is used, parts of which `begin_with` did not compare.

    Args:
        folder: the published model's.
        where: what names the folder, such as a parameter; errors begin with it.

    Raises:
        UserError: an entry that every published model has is missing, or the configuration does not fit the weights.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{where}: {folder}: its configuration does not fit its weights ({reason}); name another folder, or make "
            "it anew"
        ) from error


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The wanted values of a tree that are missing or other: the dotted path, what was found, and what is wanted."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key, value in wanted.items():
            yield from differences(found.get(key), value, f"{path}.{key}".lstrip("."))
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, value in enumerate(wanted):
            yield from differences(found[number], value, f"{path}.{number}")
    elif found != wanted:
        yield path, found, wanted
