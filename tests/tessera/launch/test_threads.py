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
from tessera.launch.threads import cgroup_quota, number_of_threads, thread_environment

Write = Callable[..., None]
VERSION_2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw"
VERSION_1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
MEMORY_1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def machine(root: Path, membership: str, mounts: str, limits: dict[str, str]) -> Path:
    """A tree like that of Linux in a folder: /proc/self with the given lines, and files below /sys/fs/cgroup."""
    files = {"proc/self/cgroup": membership, "proc/self/mountinfo": mounts}
    files |= {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("membership", "mounts", "limits", "quota"),
    [
        ("0::/job", VERSION_2, {"job/cpu.max": "150000 100000"}, 1.5),
        ("0::/job", VERSION_2, {"job/cpu.max": "max 100000"}, None),
        ("0::/a/b", VERSION_2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3.0),
        ("0::/a/b", VERSION_2, {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        # A container sees its own group as the top of the mount, under whatever name it has outside.
        ("0::/", VERSION_2, {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../../job", VERSION_2, {"cpu.max": "200000 100000"}, 2.0),
        ("0::/docker/1", VERSION_2.replace(" / ", " /docker/1 "), {"cpu.max": "200000 100000"}, 2.0),
        ("0::/docker/1", VERSION_2.replace(" / ", " /docker/2 "), {"cpu.max": "200000 100000"}, 2.0),
        (
            "5:memory:/job\n4:cpu,cpuacct:/job\n0::/",
            f"{MEMORY_1}\n{VERSION_1}",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "50000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (
            "4:cpu,cpuacct:/job",
            VERSION_1,
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/job", VERSION_2, {}, None),
        ("0::/job", "", {}, None),
    ],
)
def test_the_smallest_quota_of_all_groups_around_counts(
    tmp_path: Path, membership: str, mounts: str, limits: dict[str, str], quota: float | None
) -> None:
    assert cgroup_quota(machine(tmp_path, membership, mounts, limits)) == quota


def test_groups_and_mounted_folders_may_have_any_bytes_in_their_names(tmp_path: Path) -> None:
    machine(tmp_path, "0::/job", VERSION_2, {"job/cpu.max": "150000 100000"})
    for name in ("cgroup", "mountinfo"):
        with (tmp_path / "proc" / "self" / name).open("ab") as file:
            file.write(b"1:name=M\xfcller:/x\n" if name == "cgroup" else b"9 8 0:7 / /media/M\xfcller rw - ext4 x rw\n")
    assert cgroup_quota(tmp_path) == 1.5


def test_a_system_without_proc_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None


def test_the_quota_of_this_machine_can_be_read() -> None:
    quota = cgroup_quota()
    assert quota is None or quota > 0


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (3.9, 3), (0.5, 1), (64.0, 8)])
def test_cores_are_the_smaller_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert threads.available_cores() == cores


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
    if threads.available_cores() > 1:  # the measure sees more than one thread where there are more
        shutil.rmtree(".state")
        of_torch, busy = busy_threads("stage1_vqvae.train", repository)
        assert of_torch == threads.available_cores() and busy > 1


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
