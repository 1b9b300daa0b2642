"""Which of several processes' failures is told."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tessera.launch import failures
from tessera.launch.failures import End, first_failure, report
from tessera.launch.parents import LAUNCHER_PID


def reported(folder: Path, rank: int, seconds: float, message: str, status: int) -> None:
    content = {"seconds": seconds, "message": message, "status": status}
    (folder / f"{rank}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_report_reaches_the_one_that_started_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failures.FOLDER, str(tmp_path))
    monkeypatch.setenv(LAUNCHER_PID, str(os.getppid()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert report("error: no images", 2)
    assert first_failure(tmp_path, {1: End(2, 0.0)}) == ("error: no images", 2)


def test_a_process_started_otherwise_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not report("error: no images", 2)
    monkeypatch.setenv(LAUNCHER_PID, str(os.getppid()))
    monkeypatch.setenv(failures.FOLDER, str(tmp_path / "gone"))
    assert not report("error: no images", 2)


def test_a_process_whose_launcher_was_killed_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(failures.FOLDER, str(tmp_path))
    monkeypatch.setenv(LAUNCHER_PID, str(os.getppid() + 1))
    assert not report("error: no images", 2)


def test_the_earliest_report_is_the_cause(tmp_path: Path) -> None:
    reported(tmp_path, 0, 10.3, "Traceback: connection closed", 1)
    reported(tmp_path, 1, 10.1, "error: no images", 2)
    ends = {0: End(1, 10), 1: End(2, 10)}
    assert first_failure(tmp_path, ends) == ("error: no images", 2)


def test_a_killed_process_is_the_cause_of_others_reports(tmp_path: Path) -> None:
    reported(tmp_path, 0, 10.1, "Traceback: connection closed", 1)
    message, status = first_failure(tmp_path, {0: End(1, 10), 1: End(-signal.SIGKILL, 10)})
    assert message is not None and message.startswith("error: process 1 was killed by SIGKILL; Linux does so when")
    assert status == 137


def test_a_process_that_torchrun_had_to_kill_is_not_the_cause(tmp_path: Path) -> None:
    reported(tmp_path, 1, 10.1, "error: no images", 2)
    assert first_failure(tmp_path, {1: End(2, 10), 0: End(-signal.SIGKILL, 40)}) == ("error: no images", 2)


def test_processes_that_were_told_to_end_are_not_the_cause(tmp_path: Path) -> None:
    reported(tmp_path, 1, 10.1, "error: no images", 2)
    assert first_failure(tmp_path, {0: End(-signal.SIGTERM, 10), 1: End(2, 10)}) == ("error: no images", 2)


@pytest.mark.parametrize(("status", "whole"), [(7, 7), (143, 143), (-signal.SIGTERM, 143), (-signal.SIGINT, 130)])
def test_without_a_report_the_status_alone_is_passed_on(tmp_path: Path, status: int, whole: int) -> None:
    assert first_failure(tmp_path, {0: End(status, 10)}) == (None, whole)
