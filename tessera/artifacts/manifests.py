"""A published folder's manifest.json: every file's SHA-256, and the artifacts that it was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.artifacts.files import file_hash
from tessera.errors import UserError

MANIFEST = "manifest.json"

REMEDY = {
    "prepared": "python -m stage0_images.prepare",
    "vqvae": "python -m stage1_vqvae.train",
    "codes": "python -m stage1_vqvae.extract",
    "prior": "python -m stage2_prior.train",
    "classifier": "python -m evaluation.train_classifier",
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
