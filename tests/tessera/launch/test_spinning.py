"""Threads that wait sleep almost at once while other programs want the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.launch import load, spinning
from tessera.launch.cores import available_cores
from tessera.launch.load import Look, look
from tessera.launch.spinning import MOST_CORES, spinning_on_free_cores

PATIENCE = 60.0  # seconds, on a busy machine

pytestmark = pytest.mark.skipif(look() is None, reason="this system does not say what its cores do")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many of two cores other programs keep busy: a list of one number, which a test changes."""
    busy = [0.0]
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for module in (load, spinning):
        monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(spinning, "APART", 0.01)
    monkeypatch.setattr(spinning, "look", lambda: Look(0.0, 0.0, 0.0))
    monkeypatch.setattr(spinning, "cores_of_others", lambda before, after: busy[0])
    monkeypatch.setattr(spinning, "_loaded", lambda: {Path("libgomp.so.1")})
    monkeypatch.setattr(spinning, "_sleep", lambda library, wake: wake.wait())
    return busy


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true."""
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def named(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def test_threads_sleep_for_as_long_as_others_want_the_cores(others: list[float]) -> None:
    with spinning_on_free_cores(2):
        for _ in range(2):
            others[0] = 0.6
            assert until(lambda: named("sleep"))
            others[0] = 0.4
            assert until(lambda: not named("sleep"))
        others[0] = 2.0
        assert until(lambda: named("sleep"))
    assert until(lambda: not named("sleep")) and not named("watch other programs")


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_nobody_watches_if_the_user_says_how_threads_wait(
    others: list[float], monkeypatch, own: dict[str, str]
) -> None:
    with spinning_on_free_cores(2):
        assert named("watch other programs")
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with spinning_on_free_cores(2):
        assert not named("watch other programs")


def test_nobody_watches_for_one_thread_nor_on_many_cores_nor_without_figures(others: list[float], monkeypatch) -> None:
    with spinning_on_free_cores(1):
        assert not named("watch other programs")
    monkeypatch.setattr(spinning, "look", lambda: None)
    with spinning_on_free_cores(2):
        assert until(lambda: not named("watch other programs"))
    monkeypatch.undo()
    monkeypatch.setattr(spinning, "available_cores", lambda: MOST_CORES + 1)
    with spinning_on_free_cores(2):
        assert not named("watch other programs")


def test_threads_wake_if_the_load_cannot_be_read_any_more(others: list[float], monkeypatch) -> None:
    def no_more() -> Look:
        raise OSError("too many open files")

    others[0] = 2.0
    with spinning_on_free_cores(2):
        assert until(lambda: named("sleep"))
        monkeypatch.setattr(spinning, "look", no_more)
        assert until(lambda: not named("sleep") and not named("watch other programs"))


def test_without_room_for_more_threads_a_run_goes_on_alone(others: list[float], monkeypatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with spinning_on_free_cores(2):
        assert not named("watch other programs")
    assert not spinning._can_start(1)


# Prints how often threads of this process went to sleep in 300 operations of two threads: while other programs want the
# cores, and the least of many trials afterwards. Between two operations, a thread waits far longer than 100 looks take,
# and far shorter than it spins by default.
COUNTED = """
import resource, threading, time
from tessera.launch import spinning
from tessera.launch.threads import thread_environment

def sleeps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(300):
        values.add_(1)
        end = time.perf_counter() + 1e-4
        while time.perf_counter() < end:
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before

def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)

def team():
    return any(thread.name == "sleep" for thread in threading.enumerate())

busy, spinning.APART = True, 0.01
spinning.crowded = lambda others, threads: busy
with thread_environment(2):
    import torch

    if not spinning._loaded():
        raise SystemExit("torch has no libgomp here")
    values = torch.ones(2 * 32768)
    sleeps()
    wait_until(team)
    time.sleep(0.5)  # the team's threads begin
    print(sleeps())
    busy = False
    wait_until(lambda: not team())
    print(min(sleeps() for _ in range(50)))
"""


@pytest.mark.skipif(not 2 <= available_cores() <= MOST_CORES, reason="nothing is done on this number of cores")
def test_libgomps_threads_do_not_spin_while_others_want_the_cores() -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", COUNTED], env=kept, capture_output=True, text=True)
    if "no libgomp" in done.stderr:
        pytest.skip("torch has no libgomp here")
    assert done.returncode == 0, done.stderr
    busy, free = map(int, done.stdout.split())
    assert busy > 150 and free < busy / 2


# The process may take 12 MB more than it has, which is less than one thread's stack and its surroundings.
WITHOUT_ROOM = """
import resource, time
from tessera.launch import spinning
from tessera.launch.threads import thread_environment

busy, spinning.APART = False, 0.01
spinning.crowded = lambda others, threads: busy
with thread_environment(2):
    import torch

    values = torch.ones(2 * 32768)
    values.add_(1)
    time.sleep(0.2)
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 12 * 2**20,) * 2)
    busy = True
    for _ in range(100):
        values.add_(1)
        time.sleep(0.01)
print(values[0].item())
"""


@pytest.mark.skipif(not 2 <= available_cores() <= MOST_CORES, reason="nothing is done on this number of cores")
def test_a_process_without_room_for_more_threads_is_not_ended_by_libgomp() -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", WITHOUT_ROOM], env=kept, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "102.0\n"), done.stderr
