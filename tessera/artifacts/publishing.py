"""Publishes a folder whole or not at all.

A folder is written beside its place under another name, flushed to disk, and then exchanged with the old one. A failure
at any moment leaves the old folder. Where a file system cannot exchange, two renames take the place of the exchange,
and a reader may find no folder between them (`settled` looks again). What a killed process left half done is undone by
the next process that publishes there.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tessera.artifacts.exchange import exchange
from tessera.artifacts.files import flush
from tessera.artifacts.manifests import MANIFEST, file_entry, manifest_text
from tessera.console import waiting
from tessera.errors import UserError


def _place(folder: Path) -> Path:
    """Where a folder is published. A symbolic link stays, and what it leads to is replaced."""
    return Path(os.path.realpath(folder)) if folder.is_symlink() else folder


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Wait until no other process changes names in a folder, and keep others from it. Without locks, go on at once."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process. Yields whether the folder exists and nobody else holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:  # held by another process; or a file system without locks, where any folder may be in use
            free = False
        yield free
    finally:
        os.close(descriptor)


def clear_unfinished(parent: Path, name: str | None = None) -> None:
    """Undo what killed processes left when they published PARENT/NAME.

    An old folder that was moved aside goes back to its place if no new folder is there. Half-written folders are
    deleted. What a living process is writing stays.

    Args:
        name: of one folder; None: of all in `parent`.
    """
    name = "*" if name is None else glob.escape(name)
    for retired in parent.glob(f".{name}.old-*"):
        original, _, token = retired.name[1:].rpartition(".old-")
        folder, staging = parent / original, parent / f".{original}.new-{token}"
        with _held(staging) as free:
            if staging.exists() and not free:
                continue  # its process lives and is between its two renames
            if folder.exists():
                shutil.rmtree(retired, ignore_errors=True)
            else:
                os.rename(retired, folder)
    for staging in parent.glob(f".{name}.new-*/"):
        with _held(staging) as free:
            if free:
                shutil.rmtree(staging, ignore_errors=True)


def new_folder(name: str, path: Path) -> Path:
    """A folder that can be written whole: it is not there yet, or is empty.

    Args:
        name: of the argument or option that gave it, for the message.

    Raises:
        UserError: it is a file, or has files in it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{name}: {path} is there already and is not an empty folder; name a new folder")
    return path


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which is deleted at the end.

    What killed processes left there is deleted first.
    """
    folder = _place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
    with ExitStack() as stack:
        with _alone(folder.parent):
            clear_unfinished(folder.parent, folder.name)
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(_held(staging))
        yield staging


@contextmanager
def publishing(
    folder: Path, kind: str, parents: dict[str, str], training: dict[str, int] | None = None
) -> Iterator[Path]:
    """Yield an empty staging folder. On a clean exit it gets its manifest.json and replaces `folder`.

    Args:
        kind: what the folder holds, a key of `tessera.artifacts.manifests.REMEDY`.
        parents: the identity of each artifact that it was made from, by kind.
        training: of a trained model, the values of `steps` and `schedule_steps` that train it again.
    """
    folder = _place(folder)
    with scratch(folder) as staging:
        yield staging
        files = {}
        with waiting(f"hashes of {folder}"):
            for path in sorted(staging.rglob("*")):
                flush(path)
                if path.is_file():
                    files[path.relative_to(staging).as_posix()] = file_entry(path)
        (staging / MANIFEST).write_text(manifest_text(kind, parents, files, training), encoding="utf-8")
        flush(staging / MANIFEST)
        flush(staging)
        with _alone(folder.parent):
            _put_in_place(staging, folder)
            flush(folder.parent)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Give `staging` the name `folder`. What had that name is deleted, or has the name `staging` afterwards."""
    if folder.exists() and exchange(staging, folder):
        return
    retired = staging.with_name(".old-".join(staging.name.rsplit(".new-", 1)))
    try:
        if folder.exists():
            os.rename(folder, retired)
        os.rename(staging, folder)
    finally:
        if retired.exists() and not folder.exists():
            os.rename(retired, folder)
        shutil.rmtree(retired, ignore_errors=True)
