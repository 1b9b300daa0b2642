"""Writes files whole or not at all, and hashes them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tessera.errors import UserError


def json_text(value: Any) -> str:
    """A value as JSON text. Keys are sorted, so that the same value always gives the same text."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal. The file is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or a folder is on disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_abandoned(folder: Path) -> None:
    """Delete the temporary files of `replacing` that killed processes left in a folder."""
    for path in folder.glob(f".*.new-{'[0-9a-f]' * 8}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone, or a link
            continue
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:  # a living process writes it; or the file system has no locks, where nobody can tell
            pass
        finally:
            os.close(descriptor)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A context with a new empty file beside `path`, which this process locks to show that it lives."""
    while True:
        temporary = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            break
        os.close(descriptor)  # `clear_abandoned` of another process came before the lock
    try:
        yield temporary
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context with the path of a temporary file to write, which replaces `path` in one step at the end.

    The file is flushed to disk before it takes the place. After an exception it is deleted, and `path` is unchanged.
    What killed processes left in the folder is deleted first. A symbolic link is replaced, and not what it leads to:
    DVC may have put one there that leads into its cache.

    Raises:
        UserError: there is a device, a pipe or a socket, which a file would take the place of.
    """
    with suppress(FileNotFoundError):
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise UserError(f"{path}: a device, a pipe or a socket, and no file that could be replaced; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(path.parent)
    with _temporary(path) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
