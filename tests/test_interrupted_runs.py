"""Runs that are interrupted and started again, and a second run beside the first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from whole_runs import (
    HANGS,
    LIKE_DVC,
    Environment,
    alive,
    by_hand,
    change_params,
    column,
    is_free,
    run,
    set_processes,
    succeed,
    torchrun,
    wait_for,
)

pytestmark = pytest.mark.slow
Write = Callable[..., None]
ON_CPU = {"ACCELERATE_USE_CPU": "1"}
Uninterrupted = Callable[[Path, int], Path]


@pytest.fixture
def environment(repository: Path) -> Environment:
    return by_hand(repository) | ON_CPU


@pytest.fixture
def long_run(in_tmp: Path, write_params: Write, write_prepared: Write) -> Path:
    """A folder with a run that takes a few seconds and saves a state every 50 of its 400 steps."""
    write_prepared()
    write_params(
        {
            "stage1_vqvae.training.steps": 400,
            "stage1_vqvae.training.batch_size": 16,
            "stage1_vqvae.training.validate_every": 100,
            "stage1_vqvae.training.weight_ema_decay": 0.99,
            "runtime.save_every": 50,
            "runtime.log_every": 20,
        }
    )
    return in_tmp


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Uninterrupted:
    """`uninterrupted(folder, 2)`: a copy of the folder, trained to its end by two processes.

    Tests with the same parameters share it.
    """
    trained: dict[str, Path] = {}

    def train(folder: Path, processes: int) -> Path:
        params = json.loads((folder / "params.yaml").read_text(encoding="utf-8"))
        params["runtime"]["processes"] = processes
        text = json.dumps(params)
        if text not in trained:
            whole = tmp_path_factory.mktemp("whole") / "run"
            shutil.copytree(folder, whole)
            (whole / "params.yaml").write_text(text, encoding="utf-8")
            succeed(whole, LAUNCHERS["python"], by_hand(repository) | ON_CPU)
            trained[text] = whole
        return trained[text]

    return train


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".state/train_vqvae/*/step-*"))


def lock_is_free(folder: Path) -> bool:
    """Whether no process uses the run's folder any more."""
    (lock,) = folder.glob(".state/train_vqvae/*/lock")
    return is_free(lock)


def interrupt(folder: Path, command: list[str], environment: Environment, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send a signal to its process group once it has saved a state, and wait for its end.

    torchrun's processes are not in the group: their launcher passes signals on. Returns the exit status and what was
    printed.
    """
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: bool(saved(folder)) or process.poll() is not None, "no state was saved")
    os.killpg(process.pid, number)
    error = process.communicate(timeout=HANGS)[1]
    wait_for(lambda: lock_is_free(folder), "the run did not end")
    return process.returncode, error


def same_bytes(whole: Path, stopped: Path) -> None:
    """The weights and the curve of two runs of one process are the same, bit for bit."""
    for name in ("models/vqvae/model.safetensors", "results/train_vqvae/train.csv"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name


def same_ends(whole: Path, stopped: Path) -> None:
    """The weights and the curve of two runs are the same, up to what two processes round."""
    found = [load_file(folder / "models/vqvae/model.safetensors") for folder in (whole, stopped)]
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-5, msg=name)
    assert column(whole, "train_vqvae", "loss") == pytest.approx(column(stopped, "train_vqvae", "loss"), abs=1e-5)


MODULE = ["-m", "stage1_vqvae.train"]
LAUNCHERS = {
    "python": [sys.executable, *MODULE],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *MODULE],
    "torchrun": [*torchrun(2), *MODULE],
    "two processes": [sys.executable, *MODULE],
}


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("python", signal.SIGINT),
        ("python", signal.SIGKILL),
        ("accelerate", signal.SIGINT),
        ("torchrun", signal.SIGINT),
        ("two processes", signal.SIGINT),
        ("two processes", signal.SIGKILL),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    long_run: Path, uninterrupted: Uninterrupted, environment: Environment, launcher: str, number: signal.Signals
) -> None:
    stopped, alone = long_run, launcher in ("python", "accelerate")
    whole = uninterrupted(stopped, 1 if alone else 2)
    command = LAUNCHERS[launcher]
    set_processes(stopped, 2 if launcher == "two processes" else None)
    code, error = interrupt(stopped, command, environment, number)
    assert code != 0, error
    if launcher != "torchrun" and number != signal.SIGKILL:
        assert error.splitlines()[-1].startswith("stopped by SIGINT"), error
    if launcher in ("python", "two processes") and number != signal.SIGKILL:
        assert code == 128 + number and "Traceback" not in error, error
    # Of two processes only the one that started them was killed. They notice, save and end.
    if number != signal.SIGKILL or launcher == "two processes":
        number = signal.SIGTERM if number == signal.SIGKILL else number
        assert f"stopped by {number.name}; the same command goes on from here" in error
    assert "step-000000400" not in saved(stopped) and not (stopped / "models").exists()
    done = run(stopped, command, environment)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    (same_bytes if alone else same_ends)(whole, stopped)


def newest_state(folder: Path) -> int:
    """The step of the newest saved state, or 0."""
    return max((int(name.removeprefix("step-")) for name in saved(folder)), default=0)


def steps_taken(folder: Path) -> int:
    """The last step in train.csv, or 0."""
    file = folder / "results" / "train_vqvae" / "train.csv"
    return int(column(folder, "train_vqvae", "step")[-1]) if file.exists() and file.read_text().count("\n") > 1 else 0


def signalled(
    folder: Path, command: list[str], environment: Environment, second: bool, number: signal.Signals
) -> tuple[int, str]:
    """Start a run, send one process a signal once the training has gone on by 20 steps, and see all of them end.

    Args:
        second: whether the signal is for the second of two workers, and not for the process that is started.

    Returns:
        The exit status of the process that was started, and what was printed.
    """
    before = newest_state(folder)
    (folder / "results" / "train_vqvae" / "train.csv").unlink(missing_ok=True)  # it is written anew from the state
    with (folder / "log").open("w") as log:
        outer = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        wait_for(lambda: steps_taken(folder) >= before + 20 or not alive(outer), "no step was taken", seconds=120)
        family = [outer, *outer.children(recursive=True)]
        (target,) = [p for p in family[1:] if p.environ().get("RANK") == "1"] if second else [outer]
        target.send_signal(number)
        try:
            wait_for(lambda: outer.poll() is not None and not any(map(alive, family)), f"alive: {family}", seconds=5)
        finally:
            for process in filter(alive, family):
                process.kill()
    return outer.returncode, (folder / "log").read_text(encoding="utf-8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process that its parent is gone")
@pytest.mark.parametrize("target", ["worker", "dvc", "accelerate", "launcher", "torchrun", "second worker"])
def test_whichever_process_gets_whichever_signal_nobody_lives_on_and_the_state_is_saved(
    long_run: Path, uninterrupted: Uninterrupted, environment: Environment, target: str
) -> None:
    """One training is signalled four times. Nothing but a signal saves a state here, and each run goes on from it."""
    folder = long_run
    commands = {
        "worker": LAUNCHERS["python"],
        "dvc": [sys.executable, "-c", LIKE_DVC, "sh", "python -m stage1_vqvae.train"],
        "launcher": LAUNCHERS["two processes"],
        "second worker": LAUNCHERS["two processes"],
    }
    command, alone = commands.get(target) or LAUNCHERS[target], target in ("worker", "dvc", "accelerate")
    never = {"save_every": 10**6, "save_minutes": None, "processes": 1 if alone else 2}
    change_params(folder, {"runtime": never, "stage1_vqvae.training": {"steps": 1500, "validate_every": 1500}})
    whole = uninterrupted(folder, 1) if alone else None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        before = newest_state(folder)
        code, said = signalled(folder, command, environment, target == "second worker", number)
        assert (f"going on from step {before} (" in said) == (before > 0), said
        if target == "worker":
            assert code == (-number if number == signal.SIGKILL else 128 + number)
        if number == signal.SIGKILL and "worker" in target:
            assert newest_state(folder) == before
        else:
            assert newest_state(folder) >= before + 20, (number, said)
            # A process whose parent is gone gets SIGTERM, whatever ended the parent.
            assert f"stopped by SIG{'TERM' if target in ('dvc', 'accelerate') else number.name[3:]}; " in said or (
                number == signal.SIGKILL and "stopped by SIGTERM; " in said
            ), said
        assert not (folder / "models").exists()
    if whole:
        before = newest_state(folder)
        done = run(folder, command, environment)
        assert done.returncode == 0 and f"going on from step {before} (" in done.stderr, done.stderr
        same_bytes(whole, folder)
    else:
        before = newest_state(folder)
        _, said = signalled(folder, command, environment, False, signal.SIGTERM)
        assert f"going on from step {before} (" in said, said


# Runs an entry point, and says at the end whether torch was loaded.
SECOND = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("launcher", ["python", "two processes", "torchrun"])
def test_a_second_run_beside_the_first_is_refused_before_torch_is_loaded(
    long_run: Path, environment: Environment, launcher: str
) -> None:
    folder = long_run
    set_processes(folder, 2 if launcher == "two processes" else None)
    with subprocess.Popen(LAUNCHERS[launcher], cwd=folder, env=environment, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: bool(saved(folder)), "no state was saved")
        (holder,) = [path.read_text().split()[0] for path in folder.glob(".state/.locks/stage1_vqvae.train")]
        # It would else be done before the second has started.
        processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        second = run(folder, [sys.executable, "-c", SECOND, MODULE[1]], environment)
        for process in processes:
            process.resume()
        assert (second.returncode, second.stdout) == (75, "False\n")
        assert second.stderr == (
            f"error: process {holder} is running stage1_vqvae.train in this folder; wait for it, or stop it\n"
        )
        assert launcher == "torchrun" or holder == str(first.pid)
        assert first.wait(timeout=HANGS) == 0


def test_a_run_whose_second_process_is_killed_goes_on_to_the_same_end(
    long_run: Path, uninterrupted: Uninterrupted, environment: Environment
) -> None:
    killed, command = long_run, LAUNCHERS["two processes"]
    whole = uninterrupted(killed, 2)
    set_processes(killed, 2)
    with subprocess.Popen(command, cwd=killed, env=environment, stderr=subprocess.PIPE, text=True) as first:
        wait_for(lambda: bool(saved(killed)), "no state was saved")
        (second,) = [p for p in psutil.Process(first.pid).children() if p.environ().get("RANK") == "1"]
        second.kill()
        assert "error: process 1 was killed by SIGKILL" in first.communicate(timeout=HANGS)[1]
    assert first.returncode == 137
    done = run(killed, command, environment)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    same_ends(whole, killed)
