"""Models as published folders: config.json, model.safetensors and manifest.json. No pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import REMEDY, Manifest, read_manifest
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError

if TYPE_CHECKING:
    import torch


def save_model(
    folder: Path, kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], parents: dict[str, str]
) -> None:
    """Publish a model as config.json, model.safetensors and manifest.json."""
    from safetensors.torch import save_file

    with publishing(folder, kind, parents) as staging:
        (staging / "config.json").write_text(json_text(config), encoding="utf-8")
        # No metadata: its order in the file is not stable, and the same run must write the same bytes.
        save_file({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, staging / "model.safetensors")


def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], Manifest]:
    """Read a published model after checking every byte.

    Returns:
        its configuration, its tensors on the CPU, and its manifest.

    Raises:
        UserError: missing, damaged, of another kind, or not safetensors (a pickle is never opened).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(folder, kind)
    path = folder / "model.safetensors"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(path)
    except (SafetensorError, ValueError, FileNotFoundError) as error:
        raise UserError(
            f"{path}: not a readable safetensors model ({error}); pickles are never loaded; "
            f"make it anew with `{REMEDY[kind]}`"
        ) from error
    return config, tensors, manifest


def load_module(
    folder: Path, kind: str, build: Callable[[dict[str, Any]], torch.nn.Module]
) -> tuple[torch.nn.Module, Manifest]:
    """Rebuild a published model from its own files, on the CPU, in evaluation mode; and its manifest.

    Args:
        build: makes the model, newly initialised, of its configuration.

    Raises:
        UserError: as `load_model`; or configuration or weights are not of a model that this version builds.
    """
    config, tensors, manifest = load_model(folder, kind)
    try:
        module = build(config)
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{folder}: not a {kind} that this version can build ({reason}); make it anew with `{REMEDY[kind]}`"
        ) from error
    return module.eval(), manifest
