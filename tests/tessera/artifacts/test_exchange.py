"""Two folders change names in one step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tessera.artifacts.exchange import exchange

pytestmark = pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="no system call for it")


def test_each_gets_the_others_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name, encoding="utf-8")
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "which").read_text(encoding="utf-8") for name in ("a", "b")] == ["b", "a"]


def test_a_missing_one_is_an_error_and_the_other_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="b"):
        exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").is_dir()
