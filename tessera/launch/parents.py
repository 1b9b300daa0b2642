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

from tessera.errors import UserError

if TYPE_CHECKING:
    import psutil

LAUNCHER_PID = "TESSERA_LAUNCHER_PID"  # process id of the entry point that started this process as one of several
# A launcher sets at least one of these. `accelerate launch` with one process sets only the last.
LAUNCHER_VARIABLES = ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")
WHOLE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what several processes need
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # what a launcher sets that must be numbers
DVC_STAGE = "DVC_STAGE"  # DVC sets it to the name of the stage
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
LOOK_EVERY = 1.0  # seconds
PATIENCE = 2.0  # seconds; after Ctrl-C `accelerate launch` waits a quarter of a second, and then prints its traceback


def inside_launcher() -> bool:
    """Whether torchrun, `accelerate launch` or an entry point with several processes started this process."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


def wait_for_launcher() -> None:
    """After Ctrl-C: wait until `accelerate launch` is gone, so that its traceback comes above this process's last line.

    It is gone before its only process, whatever this one does. A launcher of several processes, such as torchrun, waits
    for them, so nothing is waited for then. Neither does `accelerate launch` end if it received no Ctrl-C; then
    `PATIENCE` is waited for. Signals that come meanwhile, such as the one for the parent's death, are ignored.
    """
    launcher = os.getppid()
    if "WORLD_SIZE" in os.environ or not _is_accelerate(launcher):
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    end = time.monotonic() + PATIENCE
    while os.getppid() == launcher and time.monotonic() < end:
        time.sleep(0.05)


def _is_accelerate(parent: int) -> bool:
    """Whether this process's parent is `accelerate launch`. If that is gone, another process is the parent by now."""
    import psutil

    if not inside_launcher() or sys.platform == "win32":  # Windows tells nobody that a parent is gone
        return False
    try:
        return any("accelerate" in word for word in psutil.Process(parent).cmdline())
    except psutil.Error:
        return False


def check_variables() -> None:
    """Refuse environment variables of a launcher, such as RANK and WORLD_SIZE, that are incomplete or contradict.

    A launcher sets all of them. One that was left over would make the run wait for processes that never start.

    Raises:
        UserError: a variable is no number or does not fit another one, or one that it needs is not set.
    """
    numbers = {name: os.environ[name] for name in NUMBERS if name in os.environ}
    fault = next((f"{name} is {value!r}, no number" for name, value in numbers.items() if not value.isdecimal()), None)
    if not fault and numbers:
        size, rank, local, here = (int(numbers.get(name, low)) for name, low in zip(NUMBERS, (1, 0, 0, 1), strict=True))
        needed = WHOLE if size > 1 else WHOLE[:1] if rank or local else ()
        missing = [name for name in needed if name not in os.environ]
        if missing:
            fault = f"{', '.join(numbers)} is set but {missing[0]} is not"
        elif max(rank, local) >= max(1, size):
            fault = f"RANK {rank} and LOCAL_RANK {local} do not fit WORLD_SIZE {size}"
        elif not 1 <= here <= max(1, size):
            fault = f"LOCAL_WORLD_SIZE {here} does not fit WORLD_SIZE {size}"
    if fault:
        raise UserError(
            f"the environment variables of a launcher are not whole: {fault}; unset {', '.join(numbers)}, or start the "
            "stage as `python -m`, by torchrun or by `accelerate launch`"
        )


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
