"""Locks, by which processes keep out of each other's way. It imports no torch.

A lock is a file that one process holds. It is free again when that process ends, whatever ended it. The file has the
holder's process id and machine, for messages, and it is empty once the lock was freed. Where the file system has no
locks, what is written there is all that others can know.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
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


class Lock:
    """A lock that this process holds. `close`, or the end of a `with` block, frees it."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text = file, f"{os.getpid()} {platform.node()}"
        file.truncate(0)
        file.write(self._text)
        file.flush()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Empty the file, unless another process has written there for want of locks, and free the lock."""
        if self._file.closed:
            return
        with suppress(OSError):  # the folder may have been deleted on another machine
            if " ".join(_written(self._file)) == self._text:
                self._file.truncate(0)
        self._file.close()


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        process: its process id, and its machine if it is another one, for messages.
        advice: empty, or what a message says besides where the file system has no locks, so that nobody can tell from
            another machine whether the process still runs.
    """

    process: str
    advice: str = ""


def acquire(path: Path, work: str) -> Lock:
    """Lock a file for this process, and write the process id into it.

    Where the file system has no locks, a line says so, and the file is taken without a lock.

    Args:
        work: what the holder does, for messages, such as "is running this stage".

    Raises:
        Busy: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            _lock_now(file)
        except BlockingIOError:
            process = _process(file)
            file.close()
            raise Busy(f"{process} {work}; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
            _say_unlocked(str(error.strerror))
        if _is_at(file, path):
            break
        file.close()  # whoever held it has deleted it
    return Lock(file)


def holder(path: Path) -> Holder | None:
    """Who holds the lock of a file. None if nobody does, or if there is no such file.

    Where the file system has no locks, it is the process that wrote its id into the file and did not empty it again. On
    its own machine it must also be alive.
    """
    with suppress(FileNotFoundError), path.open("r", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Holder(_process(file))
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            if _writer_lives(file):
                advice = f"; if it has ended, delete {path}: the file system has no locks, so nobody else can tell"
                return Holder(_process(file), advice)
    return None


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
    """Lock a file. Whoever only looks (`holder`) holds it for a moment, which is waited for.

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
    """Whether the path still leads to this open file. It does not if the file was deleted or replaced."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _written(file: IO[str]) -> tuple[str, str]:
    """The process id and the machine that are written in a lock's file; empty where nothing is."""
    file.seek(0)
    process, _, machine = file.read(1000).strip().partition(" ")
    return process, machine


def _process(file: IO[str]) -> str:
    """The process that is written in a lock's file, for messages."""
    process, machine = _written(file)
    where = f" on {machine}" if machine not in ("", platform.node()) else ""
    return f"process {process or 'unknown'}{where}"


def _writer_lives(file: IO[str]) -> bool:
    process, machine = _written(file)
    if not process.isdecimal():  # emptied, or being written
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
