"""Ctrl-C under `accelerate launch`, which prints a traceback of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_runs import HANGS, by_hand, wait_for

pytestmark = pytest.mark.slow
SLOW_TO_END = """
import sys, time
from pathlib import Path
from tessera import entry

def run(params, arguments):
    try:
        Path("began").touch()
        time.sleep(60)
    finally:
        time.sleep(1.5)  # far longer than the launcher waits for

sys.exit(entry.main(run, "doc", []))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C to a group of processes")
def test_the_line_is_the_last_under_accelerate_whatever_work_ctrl_c_interrupts(
    in_tmp: Path, write_params: Callable[..., None], repository: Path
) -> None:
    write_params({})
    (in_tmp / "work.py").write_text(SLOW_TO_END, encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "work.py"]
    process = subprocess.Popen(
        command, cwd=in_tmp, env=by_hand(repository), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: (in_tmp / "began").exists() or process.poll() is not None, "it did not begin")
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=HANGS)[1]
    assert "KeyboardInterrupt" in error, "the launcher prints its traceback"
    assert error.splitlines()[-1] == "stopped by SIGINT; run the same command again", error
