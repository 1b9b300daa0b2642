"""Files that are written whole or not at all, and the one text that a value has as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.artifacts.files import json_text, replacing, write_text
from tessera.errors import UserError

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


def test_a_pipe_is_not_replaced_nor_a_link_to_one(in_tmp: Path) -> None:
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="a device, a pipe or a socket"):
            write_text(Path(name), "x")
    assert Path("pipe").is_fifo()
    assert names(in_tmp) == ["link", "pipe"] and Path("link").is_symlink()


def test_a_link_is_replaced_and_not_what_it_leads_to(in_tmp: Path) -> None:
    Path("cached").write_text("in DVC's cache")
    Path("index.html").symlink_to("cached")
    write_text(Path("index.html"), "new")
    assert Path("cached").read_text() == "in DVC's cache" and not Path("index.html").is_symlink()


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


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "results" / "metrics.json"
    write_text(file, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "old"


def test_json_text_is_canonical():
    assert json_text({"b": 1, "a": [1.5, "ä"]}) == json_text({"a": [1.5, "ä"], "b": 1})
    assert json.loads(json_text({"a": 1e-5})) == {"a": 1e-5}
