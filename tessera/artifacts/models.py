"""Models as published folders: config.json, model.safetensors and manifest.json. A pickle is never read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import Manifest, read_manifest
from tessera.artifacts.publishing import publishing
from tessera.artifacts.settled import settled
from tessera.errors import UserError

if TYPE_CHECKING:
    import torch


def save_model(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    parents: dict[str, str],
    training: dict[str, int] | None = None,
) -> None:
    """Publish a model as config.json, model.safetensors and manifest.json.

    Args:
        config: what `load_module` rebuilds the model from, as JSON values.
        parents: the identity of each artifact that it was trained on, by kind.
        training: see `publishing`.
    """
    from safetensors.torch import save_file

    with publishing(folder, kind, parents, training) as staging:
        (staging / "config.json").write_text(json_text(config), encoding="utf-8")
        # No metadata: safetensors writes it in a random order, and the same run must write the same bytes.
        save_file({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, staging / "model.safetensors")
        shutil.copymode(staging / "config.json", staging / "model.safetensors")  # safetensors lets only the owner read


@settled
def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], Manifest]:
    """Read a published model. Each file is read once, and the bytes that were read are checked.

    Returns:
        The configuration, the tensors on the CPU, and the manifest.

    Raises:
        UserError: the folder is missing, damaged or of another kind, or its weights are not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    manifest = read_manifest(folder, kind, contents=False)
    config = manifest.read_json("config.json")
    try:
        tensors = load(manifest.read("model.safetensors"))
    except SafetensorError as error:
        raise UserError(
            f"{folder / 'model.safetensors'}: not a readable safetensors model ({error}); pickles are never loaded; "
            f"{manifest.remedy}"
        ) from error
    return config, tensors, manifest


def refuse_others(values: Any, names: Collection[str], place: str) -> None:
    """Refuse an object of a configuration that has further keys. What no code reads would be believed unseen.

    Args:
        names: the keys that the object may have.
        place: what the object is called in the message.

    Raises:
        ValueError: with the key; or the value is no object.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{place}: expected an object, got {type(values).__name__}")
    if others := sorted(set(values).difference(names)):
        raise ValueError(f"{place}: unknown key {others[0]!r}")


def stand_in(config: dict[str, Any]) -> torch.nn.Module:
    """What stands for a model where a folder says that there is none.

    Raises:
        ValueError: the configuration does not say why.
    """
    from torch import nn

    if not isinstance(config.get("reason"), str):
        raise ValueError("config.json: there is no model, and no reason is given")
    return nn.Identity()


def load_module(
    folder: Path, kind: str, build: Callable[[dict[str, Any]], torch.nn.Module]
) -> tuple[torch.nn.Module, Manifest]:
    """Rebuild a published model from its own files.

    Args:
        build: makes a model with new weights from a configuration, and refuses keys that it does not know.

    Returns:
        The model, on the CPU and in evaluation mode, and its manifest.

    Raises:
        UserError: see `load_model`; or this version cannot build a model from this configuration and these weights.
        ImportError: a library that the model needs is missing or broken.
    """
    from tessera.artifacts.bounded import no_larger_than

    config, tensors, manifest = load_model(folder, kind)
    try:
        with no_larger_than(tensors):
            module = build(config)
        module.load_state_dict(tensors)
    except ImportError:
        raise
    except Exception as error:  # a configuration from elsewhere may make a constructor raise anything
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:300]
        raise UserError(f"{folder}: not a {kind} that this version can build ({reason}); {manifest.remedy}") from error
    return module.eval(), manifest
