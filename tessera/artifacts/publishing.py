"""Publishing a folder, whole or not at all.

Everything is written beside the target, made durable, then swapped in, so that a failure leaves what was there; what a
killed process left half done is undone by the next one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.artifacts.files import file_hash, flush, json_text
from tessera.artifacts.manifests import MANIFEST


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
