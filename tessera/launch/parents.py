"""A process that DVC or a launcher started ends when the one that started it is gone.

Without this, killing `dvc repro` would leave its trainer running, and the next `dvc repro` would start a second one
that writes the same files. Only Linux offers what is needed; elsewhere nothing is done.

A run that was started by hand is left alone. It may outlive its shell, as `nohup` and `&` promise.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

LAUNCHER_PID = "TESSERA_LAUNCHER_PID"  # process id of the entry point that started this process as one of several
# A launcher sets at least one of these. `accelerate launch` with one process sets only the last.
LAUNCHER_VARIABLES = ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")
DVC_STAGE = "DVC_STAGE"  # DVC sets it to the name of the stage
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
LOOK_EVERY = 1.0  # seconds


def inside_launcher() -> bool:
    """Whether torchrun, `accelerate launch` or an entry point with several processes started this process."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


def stop_with_parent() -> None:
    """Have SIGTERM sent to this process when DVC or its launcher is gone, whatever ended it. Training then saves."""
    if not sys.platform.startswith("linux") or not (inside_launcher() or DVC_STAGE in os.environ):
        return
    import ctypes

    parent = int(os.environ.get(LAUNCHER_PID, os.getppid()))
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call, so no signal will come
        os.kill(os.getpid(), signal.SIGTERM)
    if DVC_STAGE in os.environ and LAUNCHER_PID not in os.environ:
        _watch_dvc()


def _watch_dvc() -> None:
    """Watch the processes between this one's parent and DVC, and DVC itself, in a thread.

    DVC starts a command through a shell. bash and zsh replace themselves by the command, so that DVC is its parent and
    the kernel's signal is enough. Other shells, Debian's /bin/sh among them, stay in between and outlive DVC.
    """
    others = _up_to_dvc()[1:]
    if others:
        threading.Thread(target=_stop_without, args=(others,), daemon=True, name="watch DVC").start()


def _up_to_dvc() -> list[psutil.Process]:
    """This process's parent, the parent's parent, and so on up to DVC.

    DVC puts DVC_STAGE into the environment of what it starts. DVC is therefore the first one on the way up without it.
    """
    import psutil

    found = []
    for process in psutil.Process().parents():
        found.append(process)
        try:
            if DVC_STAGE not in process.environ():
                break
        except psutil.Error:  # another user's process, or gone
            break
    return found


def _stop_without(processes: list[psutil.Process]) -> None:
    """Send this process SIGTERM, once, when one of the given processes has ended."""
    import psutil

    def alive(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    while all(alive(process) for process in processes):
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
