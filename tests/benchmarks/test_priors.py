"""The comparison of priors: its table says what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_the_table_names_the_part_that_was_given(
    repository: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import priors

    of: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in priors.read_rows(priors.RESULTS / "priors.jsonl"):
        of["completed" in row].append(row)  # of the lower half alone; others have no such key, and are of the left
    assert "| completed, given left |" in priors.table(of[False])
    assert "| completed, given lower |" in priors.table(of[True])
    assert "all but the lower part grey: 27.1%" in priors.table(of[True])
    words = ["fashion_mnist", "dataset", "--folder", "scratch", "--grids", "grids", "--given", "lower"]
    monkeypatch.setattr("sys.argv", ["priors.py", *words])
    with pytest.raises(SystemExit):
        priors.main()
    assert "--grids: the pictures show completions of the left half" in capsys.readouterr().err
    assert not Path("scratch").exists()
