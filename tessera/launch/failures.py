"""Why a run of several processes failed. Each process reports its error, and the entry point that started them prints
the first one.

When one process fails, the others fail a moment later, because they wait for it in vain. Only the first error tells
what went wrong, so no process prints its own.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tessera.launch.parents import LAUNCHER_PID

FOLDER = "TESSERA_FAILURES"  # the folder for reports, in the environment of each of several processes
LAUNCHERS_PATIENCE = 20.0  # seconds; torchrun kills what still runs 30 seconds after another process failed
STOPPING = (signal.SIGTERM, signal.SIGINT)  # signals by which torchrun ends the other processes


@dataclass(frozen=True)
class End:
    """How and when one process ended.

    status: its exit status, or minus the number of the signal that killed it.
    seconds: the time, since 1970.
    """

    status: int
    seconds: float


def report(message: str, status: int) -> bool:
    """Leave an error message for the entry point that started this process as one of several.

    Returns:
        False if no entry point did, or it is gone, so that the caller must print the message itself.
    """
    folder = os.environ.get(FOLDER)
    if folder is None or os.environ[LAUNCHER_PID] != str(os.getppid()):  # killed, it leaves its folder behind
        return False
    content = {"seconds": time.time(), "message": message, "status": status}
    file = Path(folder, f"{os.environ['LOCAL_RANK']}.json")
    try:
        file.with_suffix(".unfinished").write_text(json.dumps(content), encoding="utf-8")
        file.with_suffix(".unfinished").replace(file)  # this process may be killed while it writes
    except OSError:  # the entry point is gone, and its folder with it
        return False
    return True


def first_failure(folder: Path, ends: dict[int, End]) -> tuple[str | None, int]:
    """The failure that caused the others: its message, if there is one, and the exit status for the whole run.

    Args:
        folder: where the processes left their reports.
        ends: how each process ended that did not succeed, by rank, in the order in which torchrun noticed.
    """
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    first = min(reports, key=lambda each: each["seconds"], default=None)
    for rank, end in ends.items():
        killed = end.status < 0 and -end.status not in STOPPING and not (folder / f"{rank}.json").exists()
        # A process that hangs after another one's error is killed by torchrun, much later. It is not the cause.
        if killed and not (first and end.seconds > first["seconds"] + LAUNCHERS_PATIENCE):
            name = signal.Signals(-end.status).name
            hint = "; Linux does so when the machine's memory is full" if name == "SIGKILL" else ""
            return f"error: process {rank} was killed by {name}{hint}", 128 - end.status
    if first:
        return first["message"], first["status"]
    status = next(iter(ends.values())).status
    return None, status if status > 0 else 128 - status
