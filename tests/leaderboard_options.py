"""The leaderboard's options from words of its command line."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


def options_of(leaderboard: ModuleType, *words: str) -> Any:
    Path("dataset").mkdir(exist_ok=True)
    files = ["--folder", "scratch", "--rows", "rows.jsonl", "--steps", "steps.json", "--threads", "1"]
    return leaderboard.parser().parse_args(["dataset", *files, *words])
