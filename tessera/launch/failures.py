"""Why a run of several processes failed: each one reports its error, and the one that started them prints the first.

When one process fails, the others fail too a moment later, because their partner is gone. Only the first error is of
use, so no process prints its own.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = "TESSERA_FAILURES"  # the folder for reports, in the environment of each of several processes
LAUNCHERS_PATIENCE = 20.0  # seconds; torchrun kills what still runs 30 seconds after another process failed
STOPPING = (signal.SIGTERM, signal.SIGINT)  # signals by which torchrun ends the other processes


@dataclass(frozen=True)
class End:
    """How one process ended: its exit status, or minus the number of the signal that killed it; when, in seconds."""

    status: int
    seconds: float


def report(message: str, status: int) -> bool:
    """Leave a message for the process that started this one as one of several, and say whether there is such a one."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return False
    content = {"seconds": time.time(), "message": message, "status": status}
    try:
        Path(folder, f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(content), encoding="utf-8")
    except OSError:  # the other process is gone, and its folder with it
        return False
    return True


def first_failure(folder: Path, ends: dict[int, End]) -> tuple[str | None, int]:
    """The message of the failure that caused the others, if it left one, and the exit status for the whole run.

    Args:
        folder: where the processes reported.
        ends: of the processes that failed, by rank, in the order in which they were seen to have ended.
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
