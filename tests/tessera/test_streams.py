"""A reader that goes away ends no run: a terminal that is gone, a pipe into `head`, streams that were never open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import HANGS

from tessera import cli
from tessera.console import say
from tessera.streams import lasting


@pytest.mark.parametrize("reader", ["pipe", "terminal"])
def test_printing_goes_on_when_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    read, write = os.pipe() if reader == "pipe" else os.openpty()
    with open(write, "w", buffering=1) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        patched.setattr(sys, "stderr", stream)
        with lasting():
            say("first")
            assert os.read(read, 100).split() == [b"first"]
            os.close(read)
            for _ in range(3):
                say("x" * 100_000)
                print("y", flush=True)
        assert sys.stderr is stream


def test_what_an_encoding_does_not_have_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "said", "w", encoding="latin-1") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with lasting():
            print("a cat, eine Mütze, 猫")
    assert (tmp_path / "said").read_bytes() == "a cat, eine Mütze, \\u732b\n".encode("latin-1")


def test_another_error_of_a_stream_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with lasting(), pytest.raises(OSError, match="No space left"):
            print("x" * 100_000, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or closing it would fail too


def run(command: str, folder: Path, repository: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(repository), "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )


def test_a_command_into_head_and_one_with_closed_streams_end_well(in_tmp: Path, repository: Path, write_params) -> None:
    write_params()
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()
    done = run('{ "$PYTHON" -m tessera check; echo "$?" >&3; } 3>status | true', in_tmp, repository)
    assert (done.stderr, (in_tmp / "status").read_text()) == ("", "0\n")
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert run(f'"$PYTHON" -m tessera check {closed}', in_tmp, repository).returncode == 0, closed


@pytest.mark.parametrize(("data", "status"), [("embedded.txt", 0), ("other.txt", 2)])
def test_a_full_disk_under_standard_output_is_said_in_one_line_and_changes_no_exit_status(
    in_tmp: Path, repository: Path, write_params, monkeypatch: pytest.MonkeyPatch, data: str, status: int
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    write_params()
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / data).touch()
    done = run('"$PYTHON" -m tessera check > /dev/full', in_tmp, repository)
    assert done.returncode == status
    assert (done.stderr == "warning: the last lines cannot be written (No space left on device)\n") == (status == 0)
    assert "Traceback" not in done.stderr


def test_streams_are_put_back_when_what_is_left_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with lasting():
            print("x")
        assert sys.stdout is stream


def test_an_unknown_sign_for_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="latin-1", buffering=1) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with lasting():
            sys.stdout.write("猫\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_that_is_opened_becomes_a_closed_stream(tmp_path: Path, repository: Path, closed: str) -> None:
    code = (
        "import os; from tessera.streams import lasting\n"
        "with lasting(), open('opened', 'w') as file:\n"
        "    os.system('echo from a child >&2')\n"
        "    file.write(str(file.fileno() > 2))"
    )
    run(f'"$PYTHON" -c "{code}" {closed}', tmp_path, repository)
    assert (tmp_path / "opened").read_text() == "True"


def test_ctrl_c_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tessera.cli.check.main", interrupted)
    assert cli.main(["check"]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
