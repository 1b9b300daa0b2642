"""Which trainings are running in this working folder, and how a user asks them to end. It imports no torch."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tessera import paths
from tessera.locks import Holder, holder

LOCK = "lock"  # a running training holds the lock of this file, beside its saved states
SHARE_LOCKS = "share-*.lock"  # in a folder of parts: held by the jobs that make a share each
END = "end"  # a file of this name beside the states asks the running training to end at its next validation
MADE_BY = "made_by.json"  # in a folder of parts (`tessera.artifacts.parts`), which no training keeps
STEP, FINISHED = "step-", "finished-"  # how the names of the folders begin that hold states, and the result


def all_states() -> Path:
    """The folder with the saved states of every stage."""
    return Path(os.environ.get("DVC_ROOT", ".")) / paths.STATE


def all_runs() -> list[Path]:
    """The folders of states of all trainings, sorted by stage and fingerprint."""
    return sorted(path for path in all_states().glob("[!.]*/*") if path.is_dir())


def states_of(stage: str) -> Path:
    """The folder with the saved states of all runs of a stage."""
    return all_states() / stage


def running(stage: str) -> list[Path]:
    """The folders of states that processes of a stage work in now, sorted. Each run has its own."""
    return [folder for folder in sorted(states_of(stage).glob("*")) if folder.is_dir() and holder_of(folder)]


def holder_of(folder: Path) -> Holder | None:
    """A process that works in a folder of states or of parts; None if none does."""
    return holder(folder / LOCK) or share_holder(folder)


def share_holder(folder: Path) -> Holder | None:
    """A process that makes a share of the parts in a folder; None if none does."""
    return next(filter(None, map(holder, sorted(folder.glob(SHARE_LOCKS)))), None)


@dataclass(frozen=True)
class Used:
    """How much disk a folder of states takes, and when something in it last changed.

    Attributes:
        bytes: the sizes of all files in it and in its subfolders together; 0 if the folder is gone.
        written: when a file or folder in it last changed, in seconds since 1970; None if the folder is gone.
    """

    bytes: int
    written: float | None


def used_by(folder: Path) -> Used:
    """What a folder takes. A running stage may delete files meanwhile, which are then left out."""
    size, written = 0, None
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            with suppress(FileNotFoundError):
                status = os.stat(path)
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
                written = max(written or 0.0, status.st_mtime)
    return Used(size, written)


def parts_of(folder: Path) -> int | None:
    """The number of parts in place, for a folder of an extraction or of sampling; None for a training's folder."""
    return sum(1 for _ in folder.rglob("*.npy.json")) if (folder / MADE_BY).exists() else None


def request_end(folder: Path) -> None:
    """Ask the training that saves its states in `folder` to end at its next validation. Does not wait for it."""
    (folder / END).touch()
