"""Locks, by which processes keep out of each other's way. It imports no torch.

A lock is a file that one process holds. It is free again when that process ends, whatever ended it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from tessera import paths
from tessera.console import say
from tessera.errors import UserError
from tessera.launch.parents import LAUNCHER_PID

LOCKS = paths.STATE / ".locks"
RESULT = "TESSERA_RESULT"  # a file that the stage's work may write: where it keeps its result besides its outputs
TRIES, TRY_APART = 4, 0.02  # how often a lock is tried again, and the seconds in between
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # said by file systems that have no locks


class Busy(UserError):
    """Another process does the same work at this moment. The same command works later."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def acquire(path: Path, work: str) -> IO[str]:
    """Lock a file for this process, and write the process id into it. Closing the returned file frees the lock.

    Where the file system has no locks, a line says so, and the file is returned unlocked.

    Args:
        work: what the holder does, for messages, such as "is running this stage".

    Raises:
        Busy: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock_now(file)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise Busy(f"{holder} {work}; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
            _say_unlocked(str(error.strerror))
        if _is_at(file, path):
            break
        file.close()  # whoever held it has deleted it
    file.truncate(0)
    file.write(f"{os.getpid()} {platform.node()}")
    file.flush()
    return file


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of an existing file.

    Where the file system has no locks, the answer is whether the process that wrote its id into the file is alive.
    """
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            return _writer_lives(file)
    return False


@contextmanager
def one_run(module: str) -> Iterator[Path]:
    """Within a `with` block, no other process in this working folder can run the same stage.

    Several processes of one run share the lock of the process that started them. Where a launcher such as torchrun
    started them, the first of them takes it. The process with rank 0 that an entry point started holds a second lock,
    since it lives a moment longer than an entry point that is killed.

    Args:
        module: the stage's entry point, a dotted name.

    Yields:
        The file that `note_result` writes.

    Raises:
        Busy: another process runs this stage.
    """
    result = (LOCKS / f"{module}.result").absolute()
    work = f"is running {module} in this folder"
    if os.environ.get("RANK", "0") != "0":
        yield result
        return
    with ExitStack() as locks:
        if LAUNCHER_PID in os.environ:
            locks.enter_context(acquire(LOCKS / f"{module}.rank0", work))
            yield result
            return
        locks.enter_context(acquire(LOCKS / module, work))
        acquire(LOCKS / f"{module}.rank0", work).close()
        result.unlink(missing_ok=True)
        os.environ[RESULT] = str(result)
        try:
            yield result
        finally:
            os.environ.pop(RESULT, None)
            result.unlink(missing_ok=True)


def note_result(path: Path, spent: bool = False) -> None:
    """Tell the entry point of this run where its result is kept besides its outputs.

    Args:
        spent: whether it is of no use once the outputs are right. `delete_spent` then deletes it.
    """
    if file := os.environ.get(RESULT):
        Path(file).write_text(json.dumps([str(path), spent]), encoding="utf-8")


def noted(result: Path | None) -> tuple[Path, bool] | None:
    """What `note_result` wrote into the file that `one_run` yields, or None."""
    if result is None or not result.exists():
        return None
    path, spent = json.loads(result.read_text(encoding="utf-8"))
    return Path(path), spent


def delete_spent(result: Path | None) -> None:
    """Delete what `note_result` called spent. The first process of a run does it."""
    found = noted(result) if os.environ.get("RANK", "0") == "0" else None
    if found and found[1]:
        shutil.rmtree(found[0])


def _lock_now(file: IO[str]) -> None:
    """Lock a file. Whoever only looks (`is_held`) holds it for a moment, which is waited for.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(TRY_APART)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@cache
def _say_unlocked(reason: str) -> None:
    """Say once that the file system has no locks."""
    say(
        f"note: the file system of this folder has no locks ({reason}), so nothing keeps a second run of the same "
        "stage out: start none"
    )


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _written(file: IO[str]) -> tuple[str, str]:
    """The process id and the machine that are written in a lock's file; empty where nothing is."""
    file.seek(0)
    process, _, machine = file.read(1000).strip().partition(" ")
    return process, machine


def _holder(file: IO[str]) -> str:
    process, machine = _written(file)
    where = f" on {machine}" if machine not in ("", platform.node()) else ""
    return f"process {process or 'unknown'}{where}"


def _writer_lives(file: IO[str]) -> bool:
    process, machine = _written(file)
    if not process.isdecimal():
        return False
    if machine != platform.node():
        return True  # nobody here can tell
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
