"""How many cores other programs keep busy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.launch import load
from tessera.launch.load import Look, cores_of_others, cores_of_others_now, crowded, look

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")
HERTZ = os.sysconf("SC_CLK_TCK")
LOOP = "print(flush=True)\nwhile True: pass"


def stat(root: Path, lines: list[str]) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text("\n".join([*lines, "intr 1 2 3", "ctxt 4"]) + "\n", encoding="ascii")
    return root


def test_work_of_all_kinds_on_the_cores_of_this_process_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 10}, raising=False)
    # user, nice, system; idle, waiting; interrupts of hardware and of software; stolen by the host; guests, as in user
    cores = ["cpu 9 9 9 9 9 9 9 9 9 9", "cpu0 7 7 7 7 7 7 7 7 7 7"]
    cores += ["cpu1 1 2 4 5000 6000 8 16 7000 1 0", "cpu10 32 0 0 0 0 0 0 0 0 0", "cpu100 5 5 5 5 5 5 5 5 5 5"]
    seen = look(stat(tmp_path, cores))
    assert seen and seen.all_programs == pytest.approx((1 + 2 + 4 + 8 + 16 + 32) / HERTZ)


def test_where_the_system_does_not_tell_nothing_is_known(tmp_path: Path, monkeypatch) -> None:
    assert look(tmp_path / "elsewhere") is None
    assert look(stat(tmp_path, [f"cpu{core} a b c d e f g" for core in os.sched_getaffinity(0)])) is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3}, raising=False)
    assert look(stat(tmp_path, ["cpu0 1 1 1 1 1 1 1", "cpu3 1 1 1 1 1 1 1"])) is None  # core 2 is not shown


@pytest.mark.parametrize(("quota", "known"), [(None, True), (2.0, True), (1.5, False)])
def test_a_quota_of_fewer_cores_counts_what_proc_does_not_say(
    tmp_path: Path, monkeypatch, quota: float | None, known: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3}, raising=False)
    monkeypatch.setattr(load, "cgroup_quota", lambda root: quota)
    assert (look(stat(tmp_path, ["cpu2 1 1 1 1 1 1 1", "cpu3 1 1 1 1 1 1 1"])) is not None) == known


@pytest.mark.parametrize(
    ("others", "threads", "expected"),
    [(1.9, 8, False), (2.1, 8, True), (3.9, 6, False), (4.1, 6, True), (0.0, 16, False), (2.1, 16, True)],
)
def test_others_may_take_a_quarter_of_the_cores_unnoticed(
    monkeypatch, others: float, threads: int, expected: bool
) -> None:
    monkeypatch.setattr(load, "available_cores", lambda: 8)
    assert crowded(others, threads) == expected


def test_what_this_process_did_itself_is_not_of_others() -> None:
    before = Look(10.0, 100.0, 5.0)
    assert cores_of_others(before, Look(12.0, 103.5, 6.5)) == pytest.approx(1.0)
    assert cores_of_others(before, Look(12.0, 103.0, 8.5)) == 0  # ticks are coarser than the time of a process


@pytest.mark.skipif(look() is None, reason="this system does not say what its cores do")
def test_a_program_that_never_waits_is_noticed() -> None:
    other = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline()  # it has begun
        assert cores_of_others_now() > 0.2
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
