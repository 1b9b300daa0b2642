"""Which trainings are running in this working folder, and how a user asks them to end. It imports no torch."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from tessera import paths

LOCK = "lock"  # a running training holds the lock of this file, beside its saved states
TRIES, TRY_APART = 4, 0.05  # how often a lock is tried again, and the seconds in between
END = "end"  # a file of this name beside the states asks the running training to end at its next validation


def all_states() -> Path:
    """The folder with the saved states of every stage."""
    return Path(os.environ.get("DVC_ROOT", ".")) / paths.STATE


def states_of(stage: str) -> Path:
    """The folder with the saved states of all runs of a stage."""
    return all_states() / stage


def lock_now(file: IO[str]) -> None:
    """Lock a file for this process alone. Whoever only looks (`running`) holds it for a moment, which is waited for.

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


def running(stage: str) -> list[Path]:
    """The folders of states of the stage's trainings that are running now. Each training has its own."""
    found = []
    for lock in sorted(states_of(stage).glob(f"*/{LOCK}")):
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(lock.parent)
    return found


def request_end(folder: Path) -> None:
    """Ask the training with this folder of states to end at its next validation."""
    (folder / END).touch()
