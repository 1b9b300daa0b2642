"""The pages that say which test shows what name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HEADS = ("| promise", "| of the source", "| source", "| ---")


@pytest.mark.parametrize(("page", "rows"), [("docs/reliability.md", 20), ("docs/sources.md", 30)])
def test_every_row_names_a_test_that_exists(repository: Path, page: str, rows: int) -> None:
    lines = (repository / page).read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith("| ") and not line.startswith(HEADS)]
    for row in found:
        named = re.findall(r"`(tests/[\w/]+\.py)`( \(slow\))?", row)
        assert named or row.endswith("| the same |"), row
        for name, slow in named:
            source = (repository / name).read_text(encoding="utf-8")
            assert "def test_" in source and ("mark.slow" in source or not slow), name
    assert len(found) > rows
