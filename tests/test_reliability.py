"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_promise_names_a_test_that_exists(repository: Path) -> None:
    text = (repository / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`( \(slow\))?", row)
        assert named, row
        for name, slow in named:
            source = (repository / name).read_text(encoding="utf-8")
            assert "def test_" in source and ("mark.slow" in source or not slow), name
    assert len(rows) > 20
