"""How many cores a process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessera.launch import cores as of_process
from tessera.launch.cores import cgroup_quota

VERSION_2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw"
VERSION_1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
MEMORY_1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


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
    monkeypatch.setattr(of_process, "cgroup_quota", lambda: quota)
    assert of_process.available_cores() == cores
