"""A published folder's manifest.json: the folder's kind, what it was made from, and the hashes of its files.

    {"block_bytes": 1048576,
     "files": {"stats.json": {"bytes": 298, "sha256": "..."},
               "train/images.npy": {"bytes": 3000128, "sha256": "...", "blocks": ["...", "...", "..."]}},
     "kind": "prepared", "parents": {}, "sha256": "..."}

Every file has its size and its SHA-256. An array (.npy) that is larger than one block has the SHA-256 of each block
too, so that some of its rows can be read and checked without reading the whole file. The last `sha256` is that of the
manifest itself without this entry. Other artifacts name this one by the SHA-256 of the bytes of its manifest.json.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tessera.artifacts.files import file_hash, json_text
from tessera.console import waiting
from tessera.documents import JSON_BYTES, parse_json, read_bytes
from tessera.errors import UserError

MANIFEST = "manifest.json"
ARRAY = ".npy"

# One MiB. A block is read and hashed whole when the first of its rows is used, which takes one to two milliseconds.
# Smaller blocks would make the manifest longer: 250 GB of images have 17 MB of hashes.
BLOCK = 2**20

REMEDY = {
    "prepared": "python -m stage0_images.prepare",
    "vqvae": "python -m stage1_vqvae.train",
    "decoder": "python -m stage1_vqvae.refine",
    "codes": "python -m stage1_vqvae.extract",
    "prior": "python -m stage2_prior.train",
    "classifier": "python -m evaluation.train_classifier",
    "samples": "python -m sampling.sample",
    "state": "",  # a training saves others
}


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of one file.

    Attributes:
        bytes: its size.
        sha256: the hash of the whole file, hexadecimal.
        blocks: the hash of each block of `BLOCK` bytes in order (the last block may be shorter), for arrays only.
    """

    bytes: int
    sha256: str
    blocks: tuple[str, ...] = ()


def file_entry(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file, as JSON values."""
    if path.suffix != ARRAY or path.stat().st_size <= BLOCK:
        return {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    whole, blocks, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
            size += len(block)
    return {"bytes": size, "sha256": whole.hexdigest(), "blocks": blocks}


def manifest_text(
    kind: str, parents: dict[str, str], files: dict[str, dict[str, Any]], training: dict[str, int] | None = None
) -> str:
    """The text of a manifest.json.

    Args:
        kind: what the folder holds, a key of `REMEDY`.
        parents: the identity of each artifact that it was made from, by kind.
        files: the `file_entry` of every file, by its path relative to the folder.
        training: what `publishing` is given, for people who read the manifest.
    """
    raw = {"kind": kind, "parents": parents, "files": files, "block_bytes": BLOCK}
    if training is not None:
        raw["training"] = training
    return json_text(raw | {"sha256": _own_hash(raw)})


def _own_hash(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(raw).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A published folder's manifest, and the checked files of the folder.

    Attributes:
        identity: the SHA-256 of the bytes of manifest.json, by which children name this artifact.
        training: of a trained model, the values of `steps` and `schedule_steps` that train it again; otherwise empty.
    """

    folder: Path
    kind: str
    parents: dict[str, str]
    files: dict[str, FileEntry]
    identity: str
    training: dict[str, int] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """The advice that ends every message about a damaged file."""
        return _remedy(self.kind)

    def require_parent(self, parent: str, identity: str, folder: Path) -> None:
        """Refuse an artifact that was made from another `parent` than the one at hand.

        Raises:
            UserError: with both hashes and the command that makes this artifact anew.
        """
        recorded = self.parents.get(parent)
        if recorded != identity:
            raise UserError(
                f"{folder}: made from another {parent}: it names {str(recorded)[:16]}, the {parent} here is "
                f"{identity[:16]}; {self.remedy}"
            )

    def path(self, name: str) -> Path:
        """The path of a listed file, after a check that it is there, is a regular file and has the recorded size.

        Raises:
            UserError: otherwise, or the manifest does not list it, or there is a symbolic link on the way to it.
        """
        path = self.folder / name
        if name not in self.files:
            raise UserError(f"{path}: not listed in {MANIFEST}; {self.remedy}")
        place = self.folder
        for part in PurePosixPath(name).parts:
            place = place / part
            try:
                status = place.lstat()
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                raise UserError(f"{place}: {'missing' if missing else error.strerror}; {self.remedy}") from error
            if stat.S_ISLNK(status.st_mode):
                raise UserError(
                    f"{place}: a symbolic link, which could be changed from outside; replace it by the file (with DVC: "
                    f"`dvc config cache.type reflink,copy`, then `dvc checkout --relink`), or {self.remedy}"
                )
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a regular file; {self.remedy}")
        if status.st_size != self.files[name].bytes:
            raise UserError(f"{path}: {status.st_size} bytes instead of {self.files[name].bytes}; {self.remedy}")
        return path

    def open(self, name: str) -> int:
        """A descriptor, opened for reading, of a listed file. See `path` for what is checked."""
        path = self.path(name)
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {self.remedy}") from error

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """A listed file, opened. An error of the disk while it is read names the file."""
        with os.fdopen(self.open(name), "rb") as file:
            try:
                yield file
            except OSError as error:
                path = self.folder / name
                raise UserError(f"{path}: cannot be read ({error.strerror}); {self.remedy}") from error

    def read(self, name: str) -> bytes:
        """The contents of a listed file, checked: the bytes that are returned are those that were hashed.

        Raises:
            UserError: see `path`; or the contents differ from the recorded hash.
        """
        with self._opened(name) as file:
            data = file.read(self.files[name].bytes + 1)
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def read_json(self, name: str, finite: bool = True, limit: int = JSON_BYTES) -> Any:
        """The value of a listed JSON file, checked.

        Args:
            finite: whether NaN and infinite numbers are refused.
            limit: the largest size accepted, in bytes.

        Raises:
            UserError: see `read` and `tessera.documents.read_json`; or the file is too large.
        """
        if (listed := self.files.get(name)) and listed.bytes > limit:
            raise UserError(f"{self.folder / name}: larger than {limit} bytes, the most that is read; {self.remedy}")
        return parse_json(self.read(name), self.folder / name, self.remedy, finite)

    def check(self, name: str) -> None:
        """Compare the whole contents of a listed file with its hash, in bounded memory.

        Raises:
            UserError: see `read`.
        """
        with self._opened(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._compare(name, found)

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self.files[name].sha256:
            raise UserError(
                f"{self.folder / name}: its contents differ from the manifest's SHA-256 (damaged or edited); "
                f"{self.remedy}"
            )


def _remedy(kind: str) -> str:
    return f"make it anew with `{REMEDY[kind]}` or `dvc repro`" if REMEDY[kind] else f"a {kind} cannot be made anew"


def _parsed_entry(name: str, raw: dict[str, Any]) -> FileEntry:
    """Raises `ValueError`, `KeyError` or `TypeError` for an entry that no run of this version writes."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or str(path) != name or not name.isprintable():
        raise ValueError(f"it names the file {name!r}, which is not inside the folder")
    size, blocks = raw["bytes"], raw.get("blocks", [])
    if type(size) is not int:
        raise TypeError(f"{name} has {size!r} bytes")
    expected = -(-size // BLOCK) if path.suffix == ARRAY and size > BLOCK else 0
    if size < 0 or len(blocks) != expected:
        raise ValueError(f"{name} has {size} bytes and {len(blocks)} hashes of blocks")
    if not all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in (raw["sha256"], *blocks)):
        raise ValueError(f"a hash of {name} is not a SHA-256")
    return FileEntry(size, raw["sha256"], tuple(blocks))


def read_manifest(folder: Path, kind: str, contents: bool = True) -> Manifest:
    """Check a published folder against its manifest.

    Args:
        kind: what the folder must hold, a key of `REMEDY`.
        contents: also compare the contents of every file with its hash, in bounded memory. Without it only presence
            and size are checked, and the caller checks each file when it reads it (`Manifest.read`, `CheckedArray`).

    Raises:
        UserError: the folder is missing, of another kind, or damaged.
    """
    remedy, path = _remedy(kind), folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder}: no {kind} here (no {MANIFEST}); if its stage is running, wait for its end; otherwise {remedy}"
        )
    text = read_bytes(path, JSON_BYTES, remedy)
    raw = parse_json(text, path, remedy)
    try:
        if raw.pop("sha256") != _own_hash(raw):
            raise ValueError("its contents differ from its own SHA-256")
        if raw["block_bytes"] != BLOCK:
            raise ValueError(f"its blocks have {raw['block_bytes']} bytes, expected {BLOCK}")
        files = {name: _parsed_entry(name, entry) for name, entry in raw["files"].items()}
        identity, training = hashlib.sha256(text).hexdigest(), {k: int(v) for k, v in raw.get("training", {}).items()}
        manifest = Manifest(folder, raw["kind"], dict(raw["parents"]), files, identity, training)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: damaged, or written by another version: {reason}; {remedy}") from error
    if manifest.kind != kind:
        raise UserError(f"{folder}: expected a {kind}, found a {manifest.kind}; {remedy}")
    with waiting(f"check of {folder}"):
        for name in manifest.files:
            if contents:
                manifest.check(name)
            else:
                manifest.path(name)
    return manifest


def open_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a folder that holds arrays: every other file is checked whole, arrays when their rows are read.

    Raises:
        UserError: see `read_manifest`.
    """
    manifest = read_manifest(folder, kind, contents=False)
    for name in manifest.files:
        if not name.endswith(ARRAY):
            manifest.check(name)
    return manifest
