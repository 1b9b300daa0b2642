"""How many threads a process uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tessera.launch import threads
from tessera.launch.cores import available_cores
from tessera.launch.threads import number_of_threads, thread_environment

Write = Callable[..., None]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("wanted", "environment", "processes", "expected"),
    [
        (3, "2", 1, 3),
        (None, "2", 1, 2),
        (None, "2", 4, 2),  # OpenMP's number is for each process
        (None, "2,1", 1, 2),
        (None, None, 1, 8),
        (None, None, 3, 2),
        (None, None, 16, 1),
        (None, "", 1, 8),
        (None, "many", 1, 8),
        (None, "0", 1, 8),
    ],
)
def test_parameters_then_environment_then_the_machine_decide(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, environment: str | None, processes: int, expected: int
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert number_of_threads(wanted, processes) == expected
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (launcher | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))).items():
        monkeypatch.setenv(name, value)
    assert number_of_threads(wanted) == expected


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "5")
    with thread_environment(3):
        assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "5"


def test_the_affinity_of_this_process_counts() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no CPU affinity on this system")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert number_of_threads(None) == 1
    finally:
        os.sched_setaffinity(0, before)


# Runs an entry point. Prints torch's number of threads, and the number of threads that took at least a twentieth of the
# processor time each. A thread that only waits, or hands over a batch now and then, is not among them.
MEASURED = """
import sys, threading
from importlib import import_module
import accelerate, psutil, torch

def times():
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}

def look():
    while not ended.wait(0.05):
        last.update(times())

stage = import_module(sys.argv[1])
before, last, ended = times(), {}, threading.Event()
watch = threading.Thread(target=look)
watch.start()
assert stage.main([]) == 0
ended.set()
watch.join()
spent = {number: seconds - before.get(number, 0) for number, seconds in last.items() if number != watch.native_id}
busy = [seconds for seconds in spent.values() if seconds > 0.05 * sum(spent.values())]
print("threads", torch.get_num_threads(), len(busy), spent)
"""


def busy_threads(module: str, repository: Path, **environment: str) -> tuple[int, int]:
    """torch's number of threads, and the number of threads that worked."""
    environment = os.environ | {"PYTHONPATH": str(repository), "ACCELERATE_USE_CPU": "1"} | environment
    command = [sys.executable, "-c", MEASURED, module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, of_torch, busy, *_ = done.stdout.splitlines()[-1].split()
    return int(of_torch), int(busy)


@pytest.mark.slow
def test_one_thread_in_the_environment_is_one_busy_thread(
    in_tmp: Path, write_params: Write, write_prepared: Write, repository: Path
) -> None:
    """The layers are so large that torch divides their work among its threads."""
    write_prepared((1, 16, 16))
    write_params(
        {
            "runtime.threads": None,
            "data.height": 16,
            "data.width": 16,
            "stage1_vqvae.network.conv.channels": 64,
            "stage1_vqvae.training.batch_size": 64,
            "stage1_vqvae.training.steps": 30,
            "stage1_vqvae.training.validate_every": 30,
        }
    )
    assert busy_threads("stage1_vqvae.train", repository, OMP_NUM_THREADS="1") == (1, 1)
    if available_cores() > 1:  # the measure sees more than one thread where there are more
        shutil.rmtree(".state")
        of_torch, busy = busy_threads("stage1_vqvae.train", repository)
        assert of_torch == available_cores() and busy > 1


def test_a_helper_of_a_cpu_computes_alone_and_leaves_other_threads_theirs() -> None:
    import torch

    from tessera.launch.devices import helper

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for device, alone in (("cpu", 1), ("cuda", 3)):
            with helper(torch.device(device)) as beside, ThreadPoolExecutor(1) as later:
                torch.rand(100_000).exp()  # the first operation of a thread
                assert beside.submit(lambda: (torch.rand(100_000).exp(), torch.get_num_threads())[1]).result() == alone
                assert later.submit(torch.get_num_threads).result() == 3
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
