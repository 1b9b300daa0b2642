"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tessera import locks
from tessera.launch.parents import LAUNCHER_PID
from tessera.locks import Busy, acquire, holder, one_run

LOCK = Path("folder/lock")


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", LAUNCHER_PID):
        monkeypatch.delenv(name, raising=False)
    locks._say_unlocked.cache_clear()


def test_a_lock_keeps_others_out_until_it_is_closed() -> None:
    with acquire(LOCK, "works"):
        assert holder(LOCK)
        with pytest.raises(Busy, match=rf"^process {os.getpid()} works; wait for it, or stop it$") as refused:
            acquire(LOCK, "works")
        assert refused.value.status == 75
    assert not holder(LOCK)
    acquire(LOCK, "works").close()


def test_a_lock_that_was_freed_names_nobody() -> None:
    with acquire(LOCK, "works") as lock:
        assert LOCK.read_text() == f"{os.getpid()} {platform.node()}"
    assert LOCK.read_text() == "" and holder(LOCK) is None and holder(Path("folder/none")) is None
    lock.close()


def test_a_holder_on_another_machine_is_named_with_it() -> None:
    with acquire(LOCK, "works"):
        LOCK.write_text("12 node7")
        with pytest.raises(Busy, match="process 12 on node7 works"):
            acquire(LOCK, "works")


def test_whoever_looks_for_a_moment_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    acquire(LOCK, "works").close()
    looker, looks = LOCK.open(), []
    fcntl.flock(looker, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: looks.append(seconds) or looker.close())
    with acquire(LOCK, "works"):
        assert len(looks) == 1


def test_a_lock_whose_file_is_deleted_meanwhile_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    first, attempts = acquire(LOCK, "works"), []

    def delete_and_free(seconds: float) -> None:
        attempts.append(seconds)
        LOCK.unlink(missing_ok=True)
        first.close()

    monkeypatch.setattr(locks.time, "sleep", delete_and_free)
    with acquire(LOCK, "works"):
        assert len(attempts) == 1 and holder(LOCK)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int
) -> None:
    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", without)
    with acquire(LOCK, "works"), acquire(Path("other/lock"), "works"):
        assert holder(LOCK)  # this process wrote its id there, and lives
    said = capsys.readouterr().err
    assert f"has no locks ({os.strerror(number)})" in said and said.count("\n") == 1
    assert not holder(LOCK)  # emptied
    LOCK.write_text(f"999999999 {platform.node()}")
    assert not holder(LOCK)
    LOCK.write_text("12 elsewhere")
    found = holder(LOCK)
    assert found and found.process == "process 12 on elsewhere" and f"delete {LOCK}" in found.advice


def test_without_locks_the_note_of_a_second_run_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", without)
    with acquire(LOCK, "works"):
        LOCK.write_text("12 elsewhere")
    assert LOCK.read_text() == "12 elsewhere"


def test_another_error_of_a_lock_is_no_lack_of_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    with pytest.raises(OSError, match="broken"):
        acquire(LOCK, "works")


def test_one_stage_runs_once_in_a_folder_and_others_beside_it() -> None:
    with one_run("a.train"), one_run("b.train"), pytest.raises(Busy, match=r"is running a\.train"), one_run("a.train"):
        pass
    with one_run("a.train"):  # free again
        pass


def test_the_processes_of_one_run_share_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    with one_run("a.train"):
        monkeypatch.setenv(LAUNCHER_PID, str(os.getpid()))
        with one_run("a.train"):  # rank 0
            monkeypatch.setenv("RANK", "1")
            with one_run("a.train"):
                pass


def test_the_first_process_of_another_launcher_takes_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with one_run("a.train"), monkeypatch.context() as other:
        other.setenv("RANK", "0")
        with one_run("a.train"), pytest.raises(Busy), one_run("a.train"):
            pass


def test_a_process_that_outlives_its_launcher_keeps_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_PID, "1")
    with one_run("a.train"):
        monkeypatch.delenv(LAUNCHER_PID)
        with pytest.raises(Busy), one_run("a.train"):
            pass
    with one_run("a.train"):
        pass


def test_a_lock_dies_with_its_process(repository: Path) -> None:
    code = "import os, signal\nfrom tessera.locks import one_run\n"
    code += "with one_run('a.train'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(repository)}, check=False)
    assert (locks.LOCKS / "a.train").read_text().startswith(tuple("123456789"))
    with one_run("a.train"):
        pass


def test_work_tells_its_entry_point_where_its_result_is() -> None:
    locks.note_result(Path("ignored"))  # nobody asks
    with one_run("a.train") as told:
        assert not told.exists()
        locks.note_result(Path("somewhere"))
        assert locks.noted(told) == (Path("somewhere"), False)
    assert not told.exists() and locks.RESULT not in os.environ
