"""A published folder: files plus manifest.json, which names every file's SHA-256 and the artifacts it was made from.

Publication is atomic: everything is written beside the target, made durable, then swapped in, so that a failure leaves
what was there. Loading checks the manifest before anything is believed. Nothing that is read back is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"

# What makes each kind of artifact: the remedy that an error names.
REMEDY = {
    "prepared": "python -m stage1_vqvae.prepare",
    "vqvae": "accelerate launch -m stage1_vqvae.train",
    "codes": "accelerate launch -m stage1_vqvae.extract",
    "prior": "accelerate launch -m stage2_prior.train",
    "classifier": "accelerate launch -m sampling.classifier",
    "samples": "python -m sampling.sample",
    "state": "dvc repro",
}


@dataclass(frozen=True)
class Manifest:
    """What a published folder says of itself; `identity` is the hash by which its children name it."""

    kind: str
    parents: dict[str, str]
    files: dict[str, dict[str, Any]]
    identity: str

    def require_parent(self, parent: str, identity: str, folder: Path) -> None:
        """Refuse an artifact that was made from another `parent` than the one at hand.

        Raises:
            UserError: with both hashes and the command that makes this artifact anew.
        """
        recorded = self.parents.get(parent)
        if recorded != identity:
            raise UserError(
                f"{folder}: made from another {parent}: it names {str(recorded)[:16]}, the {parent} here is "
                f"{identity[:16]}; make it anew with `{REMEDY[self.kind]}`"
            )


def json_text(value: Any) -> str:
    """Canonical JSON: the same value gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make a file or folder durable on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)


@contextmanager
def publishing(folder: Path, kind: str, parents: dict[str, str]) -> Iterator[Path]:
    """Yield an empty staging folder; on a clean exit add the manifest and put the folder in place of `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    retired = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        files = {}
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            flush(path)
            files[path.relative_to(staging).as_posix()] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
        manifest = {"kind": kind, "parents": parents, "files": files}
        (staging / MANIFEST).write_text(json_text(manifest), encoding="utf-8")
        flush(staging / MANIFEST)
        flush(staging)
        if folder.exists():
            os.rename(folder, retired)
        try:
            os.rename(staging, folder)
        except OSError:
            if retired.exists():
                os.rename(retired, folder)
            raise
        flush(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def read_manifest(folder: Path, kind: str, contents: bool = True) -> Manifest:
    """Check a published folder against its manifest.

    Args:
        kind: what the folder must hold, a key of `REMEDY`.
        contents: also hash every file; otherwise only presence and size are checked (for data too large to read twice).

    Raises:
        UserError: the folder is missing, of another kind, or a file is missing, truncated or altered.
    """
    remedy = f"make it anew with `{REMEDY[kind]}`"
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {kind} here (no {MANIFEST}); {remedy}")
    text = path.read_bytes()
    try:
        raw = json.loads(text)
        identity = hashlib.sha256(text).hexdigest()
        manifest = Manifest(raw["kind"], dict(raw["parents"]), dict(raw["files"]), identity)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    if manifest.kind != kind:
        raise UserError(f"{folder}: expected a {kind}, found a {manifest.kind}; {remedy}")
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file}: missing; {remedy}")
        if file.stat().st_size != expected["bytes"]:
            raise UserError(f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']}; {remedy}")
        if contents and file_hash(file) != expected["sha256"]:
            raise UserError(f"{file}: its contents differ from the manifest's SHA-256 (damaged or edited); {remedy}")
    return manifest


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
