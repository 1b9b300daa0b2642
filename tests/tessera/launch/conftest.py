"""A stage of a few lines, which does what it is told, as a module that processes can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from whole_runs import Environment, by_hand

# Leaves a file for each of its processes, named by the rank, with the process id.
STAGE = """
import os, signal, sys, time
from pathlib import Path

from tessera import entry
from tessera.errors import UserError

USES = ()


def run(params, arguments):
    rank = os.environ.get("LOCAL_RANK", "0")
    pid = Path(f"{rank}.pid.tmp")
    pid.write_text(str(os.getpid()))
    pid.rename(f"{rank}.pid")
    does = os.environ["STAGE_DOES"]
    if does == "user error":
        raise UserError("no images here; put some there")
    if does == "defect":
        raise KeyError("a bug")
    if does == "exit":
        sys.exit(7)
    if does == "save slowly":
        try:
            time.sleep(60)
        finally:
            time.sleep(33)
            Path(f"{rank}.saved").touch()
    if does in ("wait", "user error of the second", "defect of the second", "kill of the second"):
        if does != "wait" and rank == "1":
            if does.startswith("user"):
                raise UserError("no images here; put some there")
            if does.startswith("defect"):
                raise KeyError("a bug")
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(600):  # a signal that comes just before a sleep is seen when it ends
            time.sleep(0.1)
    sys.stdout.write(f"threads {os.environ['OMP_NUM_THREADS']}\\n")  # at once: another process may write too


def main(argv=None):
    return entry.main(run, "doc", argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
"""


@pytest.fixture
def stage(in_tmp: Path, write_params: Callable[..., None]) -> Path:
    """The current folder, with the module `stage` and params.yaml."""
    (in_tmp / "stage.py").write_text(STAGE, encoding="utf-8")
    write_params({"runtime.threads": None})
    return in_tmp


@pytest.fixture
def environment(repository: Path) -> Environment:
    """That of a run by hand, on a CPU."""
    return by_hand(repository) | {"ACCELERATE_USE_CPU": "1", "STAGE_DOES": "nothing", "DVC_NO_ANALYTICS": "1"}
