"""Entry points as whole processes: exit statuses, what is printed, and what becomes of them when others end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.distributed.launcher.api import LaunchConfig
from whole_runs import HANGS, LIKE_DVC, Environment, alive, run, torchrun, wait_for

Write = Callable[..., None]
STAGE = [sys.executable, "-m", "stage"]
# Signals, with the exit status and the line of a stage that is ended by them.
ENDS = [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "stopped by SIGINT; run the same command again\n")]


def started(folder: Path, processes: int) -> list[psutil.Process]:
    """The stage's processes, once all of them run."""
    files = [folder / f"{rank}.pid" for rank in range(processes)]
    wait_for(lambda: all(file.exists() for file in files), "the stage did not start")
    return [psutil.Process(int(file.read_text())) for file in files]


def stop(process: psutil.Process) -> None:
    """End a process that the test started, if it still runs."""
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return
    process.wait(HANGS)


@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("nothing", 0, ""),
        ("user error", 2, "error: no images here; put some there\n"),
        ("exit", 7, ""),
    ],
)
def test_one_process_passes_its_exit_status_on(
    stage: Path, environment: Environment, does: str, status: int, said: str
) -> None:
    done = run(stage, STAGE, environment | {"STAGE_DOES": does})
    assert (done.returncode, done.stderr) == (status, said)
    assert done.stdout == ("threads 1\n" if does == "nothing" else "")


@pytest.mark.parametrize(("number", "status", "said"), ENDS)
def test_one_process_ends_by_a_signal_with_its_status(
    stage: Path, environment: Environment, number: signal.Signals, status: int, said: str
) -> None:
    process = subprocess.Popen(STAGE, env=environment | {"STAGE_DOES": "wait"}, stderr=subprocess.PIPE, text=True)
    started(stage, 1)
    process.send_signal(number)
    assert process.communicate(timeout=HANGS)[1] == said and process.returncode == status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("nothing", 0, ""),
        ("user error", 2, "error: no images here; put some there\n"),
        ("user error of the second", 2, "error: no images here; put some there\n"),
        ("exit", 7, ""),
        ("kill of the second", 137, "error: process 1 was killed by SIGKILL; Linux does so when the machine's memory"),
    ],
)
def test_several_processes_pass_their_exit_status_on_and_one_speaks(
    stage: Path, write_params: Write, environment: Environment, does: str, status: int, said: str
) -> None:
    write_params({"runtime.processes": 2})
    done = run(stage, STAGE, environment | {"STAGE_DOES": does})
    assert done.returncode == status and done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)
    assert done.stdout == ("threads 1\n" * 2 if does == "nothing" else "")


@pytest.mark.slow
def test_a_defect_in_one_of_several_processes_has_one_traceback(
    stage: Path, write_params: Write, environment: Environment
) -> None:
    write_params({"runtime.processes": 2})
    done = run(stage, STAGE, environment | {"STAGE_DOES": "defect of the second"})
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'a bug'\n")
    assert done.stderr.count("Traceback") == 1 and "elastic" not in done.stderr


@pytest.mark.slow
def test_under_torchrun_the_error_of_one_process_alone_is_printed(stage: Path, environment: Environment) -> None:
    done = run(stage, [*torchrun(2), *STAGE[1:]], environment | {"STAGE_DOES": "user error of the second"})
    assert done.returncode != 0
    assert "error: [process 1] no images here; put some there\n" in done.stderr


@pytest.mark.slow
def test_several_processes_divide_the_cores(stage: Path, write_params: Write, environment: Environment) -> None:
    """torchrun alone would give each one thread."""
    write_params({"runtime.processes": 2})
    del environment["OMP_NUM_THREADS"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    done = run(stage, STAGE, environment)
    each = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(each) == 2 and each[0] == each[1] <= max(1, cores // 2)  # a cgroup may leave fewer
    assert run(stage, STAGE, environment | {"OMP_NUM_THREADS": "3"}).stdout == "threads 3\n" * 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "said"), ENDS)
def test_several_processes_end_by_a_signal_to_the_one_that_started_them(
    stage: Path, write_params: Write, environment: Environment, number: signal.Signals, status: int, said: str
) -> None:
    write_params({"runtime.processes": 2})
    process = subprocess.Popen(STAGE, env=environment | {"STAGE_DOES": "wait"}, stderr=subprocess.PIPE, text=True)
    trainers = started(stage, 2)
    process.send_signal(number)
    assert process.communicate(timeout=HANGS)[1] == said and process.returncode == status
    assert not any(alive(trainer) for trainer in trainers)


@pytest.mark.slow
def test_several_processes_may_take_longer_than_half_a_minute_to_save(
    stage: Path, write_params: Write, environment: Environment
) -> None:
    """By default torchrun kills after 30 seconds what has not ended."""
    if not hasattr(LaunchConfig, "shutdown_timeout"):
        pytest.skip("this version of torch always kills after 30 seconds")
    write_params({"runtime.processes": 2})
    process = subprocess.Popen(STAGE, env=environment | {"STAGE_DOES": "save slowly"})
    started(stage, 2)
    process.terminate()
    assert process.wait(timeout=HANGS) == 143
    assert sorted(path.name for path in stage.glob("*.saved")) == ["0.saved", "1.saved"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_dvc_shows_the_exit_status(stage: Path, write_params: Write, environment: Environment, processes: int) -> None:
    write_params({"runtime.processes": processes})
    (stage / "dvc.yaml").write_text("stages:\n  train:\n    cmd: python -m stage\n", encoding="utf-8")
    environment = environment | {"STAGE_DOES": "user error", "DVC_SITE_CACHE_DIR": str(stage / "site")}
    assert run(stage, [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], environment).returncode == 0
    done = run(stage, [sys.executable, "-m", "dvc", "repro"], environment)
    assert done.returncode != 0
    assert "failed to run: python -m stage, exited with 2" in done.stderr
    assert done.stderr.count("error: no images here") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process that its parent is gone")
@pytest.mark.parametrize("shell", ["sh", "bash"])  # bash replaces itself by the command; Debian's sh does not
@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_lives_on_after_dvc_is_killed(
    stage: Path, write_params: Write, environment: Environment, processes: int, shell: str
) -> None:
    write_params({"runtime.processes": processes})
    command = [sys.executable, "-c", LIKE_DVC, shell, "python -m stage"]
    dvc = psutil.Popen(command, env=environment | {"STAGE_DOES": "wait"})
    trainers = started(stage, processes)
    family = dvc.children(recursive=True)
    assert {trainer.pid for trainer in trainers} <= {process.pid for process in family}
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not any(alive(process) for process in family), f"still alive: {family}", seconds=5)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process that its parent is gone")
@pytest.mark.parametrize("launcher", ["entry point", "torchrun", "accelerate"])
def test_nobody_lives_on_after_the_launcher_is_killed(
    stage: Path, write_params: Write, environment: Environment, launcher: str
) -> None:
    several = launcher != "accelerate"
    write_params({"runtime.processes": 2 if launcher == "entry point" else None})
    prefix = {
        "entry point": STAGE,
        "torchrun": [*torchrun(2), *STAGE[1:]],
        "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", *STAGE[1:]],
    }
    outer = subprocess.Popen(prefix[launcher], env=environment | {"STAGE_DOES": "wait"}, stderr=subprocess.DEVNULL)
    trainers = started(stage, 1 + several)
    assert outer.pid not in [trainer.pid for trainer in trainers]
    outer.kill()
    outer.wait()
    wait_for(lambda: not any(alive(trainer) for trainer in trainers), "a trainer lives on", seconds=5)
    # The next run deletes what the killed one left.
    left = stage / ".state" / ".launched"
    assert not left.exists() or (len(list(left.iterdir())) == 1) == (launcher == "entry point")
    assert run(stage, STAGE, environment).returncode == 0
    assert not left.exists() or not list(left.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_by_hand_lives_on_after_its_shell(
    stage: Path, write_params: Write, environment: Environment, processes: int
) -> None:
    """With `nohup`, also after the terminal is closed, which sends SIGHUP to everything that was started in it."""
    write_params({"runtime.processes": processes})
    command = f"nohup {sys.executable} -m stage > log 2>&1 & sleep 60"
    shell = subprocess.Popen(["sh", "-c", command], env=environment | {"STAGE_DOES": "wait"}, start_new_session=True)
    trainers = started(stage, processes)
    outer = trainers[0] if processes == 1 else trainers[0].parent()
    assert outer is not None
    try:
        os.killpg(shell.pid, signal.SIGHUP)
        shell.wait(HANGS)
        time.sleep(3)
        assert all(alive(process) for process in (outer, *trainers))
    finally:
        stop(outer)
    wait_for(lambda: not any(alive(trainer) for trainer in trainers), "a trainer lives on", seconds=5)
