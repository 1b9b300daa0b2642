"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.artifacts.files import replacing, write_text

# Writes half a file, says so, and is killed.
KILLED = """
import os, signal
from pathlib import Path
from tessera.artifacts.files import replacing
with replacing(Path("curve.csv")) as temporary:
    temporary.write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_else_is_left(in_tmp: Path) -> None:
    write_text(Path("curve.csv"), "old")
    with pytest.raises(RuntimeError), replacing(Path("curve.csv")) as temporary:
        temporary.write_text("hal")
        raise RuntimeError
    assert Path("curve.csv").read_text() == "old" and names(in_tmp) == ["curve.csv"]
    write_text(Path("curve.csv"), "new")
    assert Path("curve.csv").read_text() == "new" and names(in_tmp) == ["curve.csv"]


def test_what_a_killed_process_left_is_deleted_by_the_next_one_that_writes_there(
    in_tmp: Path, repository: Path
) -> None:
    subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(repository)}, check=False)
    assert len(names(in_tmp)) == 1 and names(in_tmp)[0].startswith(".curve.csv.new-")
    Path(".notes.new-idea").write_text("a person's")
    with replacing(Path("living.csv")) as living:
        write_text(Path("other.csv"), "x")
        assert living.exists()
        living.write_text("y")
    assert names(in_tmp) == [".notes.new-idea", "living.csv", "other.csv"]
