"""Runs of entry points as whole processes, for the tests that start them."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_python
import psutil

from tessera.launch.parents import DVC_STAGE, LAUNCHER_PID, LAUNCHER_VARIABLES

Environment = dict[str, str]
HANGS = 1800  # seconds after which a process is believed to hang, on a machine that is busy with twenty others too
LONGEST = 5  # times the seconds of `wait_for`; 25 s in place of 5 are fewer than torchrun's own 30

# Starts a command through a shell, as DVC does, and waits for it.
LIKE_DVC = """
import os, subprocess, sys
shell, command = sys.argv[1:]
subprocess.Popen([shell, "-c", command], env=os.environ | {"DVC_STAGE": "train_vqvae"}).wait()
"""


def by_hand(repository: Path, forked: bool = False) -> Environment:
    """The environment of a run that was started by hand, with one thread. `python` is the tests' own interpreter.

    Args:
        forked: `python` is that of forked_python.py, also for torchrun's processes. Not for tests of signals: it kills
            a run whatever the signal.
    """
    hidden = {*LAUNCHER_VARIABLES, LAUNCHER_PID, DVC_STAGE, "DVC_ROOT", "RANK", "MASTER_ADDR", "ACCELERATE_USE_CPU"}
    own = forked_python.folder() if forked else None
    variables = forked_python.environment() if own else os.environ
    kept = {name: value for name, value in variables.items() if name not in hidden}
    path = os.pathsep.join(str(each) for each in (own, Path(sys.executable).parent, kept["PATH"]) if each)
    if own:
        kept["PYTHON_EXEC"] = str(own / "python")  # what torchrun starts
    return kept | {"PATH": path, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}


def torchrun(processes: int) -> list[str]:
    """The beginning of a command that starts several processes by torchrun, in an environment of `by_hand`."""
    return ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def run(folder: Path, command: list[str], environment: Environment) -> subprocess.CompletedProcess:
    """Run a command to its end, and keep what it prints."""
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )


def succeed(folder: Path, command: list[str], environment: Environment) -> None:
    """Run a command that must not fail."""
    done = run(folder, command, environment)
    assert done.returncode == 0, done.stderr


def copies(here: Path, *names: str) -> list[Path]:
    """Copy a folder with its parameters, data and models, once for each name."""
    made = []
    for name in names:
        folder = here.with_name(f"{here.name}_{name}")
        shutil.copytree(here, folder)
        made.append(folder)
    return made


def set_processes(folder: Path, count: int | None) -> None:
    """Set runtime.processes in a folder's params.yaml."""
    change_params(folder, {"runtime": {"processes": count}})


def change_params(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Change values of a folder's params.yaml: by the dotted path of their section, then by name."""
    params = json.loads((folder / "params.yaml").read_text(encoding="utf-8"))
    for path, values in changes.items():
        section = params
        for name in path.split("."):
            section = section[name]
        section |= values
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")


def column(folder: Path, stage: str, name: str, missing: float | None = None) -> list[float]:
    """One column of a stage's train.csv. `missing`: in place of what a row lacks; None: no row may lack it."""
    with (folder / "results" / stage / "train.csv").open() as file:
        return [missing if missing is not None and not row[name] else float(row[name]) for row in csv.DictReader(file)]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds; fail with `what` after some seconds.

    Seconds in which a process of this machine waited for a core or a disk do not count, so that a machine which is
    busy with other things fails no test. At most `LONGEST` times as many seconds pass in all.
    """
    began, before = time.monotonic(), held_up()
    while not condition():
        passed = time.monotonic() - began
        assert max(passed - (held_up() - before), passed / LONGEST) < seconds, what
        time.sleep(0.02)


def held_up() -> float:
    """For how many seconds since the start processes waited for a core or a disk, or a virtual machine for its host.

    A system without /proc/pressure tells the last alone.
    """
    files = [file for kind in ("cpu", "io") if (file := Path("/proc/pressure", kind)).exists()]
    totals = [file.read_text().splitlines()[0].rpartition("total=")[2] for file in files]
    return getattr(psutil.cpu_times(), "steal", 0.0) + sum(map(int, totals)) / 1e6  # microseconds


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_free(lock: Path) -> bool:
    """Whether no process holds a lock."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
