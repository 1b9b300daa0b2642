"""A published folder: files plus manifest.json, which names every file's SHA-256 and the artifacts it was made from.

Publication is atomic: everything is written beside the target, made durable, then swapped in, so that a failure leaves
what was there; what a killed process left half done is undone by the next one. Loading checks the manifest before
anything is believed. Nothing that is read back is a pickle.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; on a clean exit it takes the place of `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which dies with the process; tells whether it was there and free."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:  # held, or a filesystem without locks: then nothing is known to be free
            free = False
        yield free
    finally:
        os.close(descriptor)


def clear_unfinished(parent: Path, name: str = "*") -> None:
    """Undo what a process that was killed while it published PARENT/NAME left: the old folder goes back to its place if
    there is no new one, and what was half written is deleted; not what a living process is writing."""
    for retired in parent.glob(f".{name}.old-*"):
        original, _, token = retired.name[1:].rpartition(".old-")
        folder, staging = parent / original, parent / f".{original}.new-{token}"
        with _held(staging) as free:
            if staging.exists() and not free:
                continue  # between its two renames
            if folder.exists():
                shutil.rmtree(retired, ignore_errors=True)
            else:
                os.rename(retired, folder)
    for staging in parent.glob(f".{name}.new-*/"):
        with _held(staging) as free:
            if free:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, gone at the end; one that a killed process left goes now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder.parent, folder.name)
    staging = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    staging.mkdir()
    try:
        with _held(staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def publishing(folder: Path, kind: str, parents: dict[str, str]) -> Iterator[Path]:
    """Yield an empty staging folder; on a clean exit add the manifest and put the folder in place of `folder`."""
    with scratch(folder) as staging:
        yield staging
        files = {}
        for path in sorted(staging.rglob("*")):
            flush(path)
            if path.is_file():
                name = path.relative_to(staging).as_posix()
                files[name] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
        manifest = {"kind": kind, "parents": parents, "files": files}
        (staging / MANIFEST).write_text(json_text(manifest), encoding="utf-8")
        flush(staging / MANIFEST)
        flush(staging)
        retired = staging.with_name(".old-".join(staging.name.rsplit(".new-", 1)))
        try:
            if folder.exists():
                os.rename(folder, retired)
            os.rename(staging, folder)
            flush(folder.parent)
        finally:
            if retired.exists() and not folder.exists():
                os.rename(retired, folder)
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
        files = {name: {"bytes": file["bytes"], "sha256": file["sha256"]} for name, file in raw["files"].items()}
        manifest = Manifest(raw["kind"], dict(raw["parents"]), files, identity)
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
