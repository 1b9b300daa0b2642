"""Links of the pages lead to files and headings that exist, and the pages' commands name modules that exist."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture
def pages(repository: Path) -> list[Path]:
    return [*repository.glob("*.md"), *repository.glob("docs/**/*.md"), *repository.glob("examples/**/*.md")]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, without punctuation, dashes for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere(pages: list[Path]) -> None:
    broken, seen = [], 0
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            goal = (page.parent / name).resolve() if name else page
            seen += 1
            if not goal.exists() or (anchor and anchor not in anchors(goal)):
                broken.append(f"{page.name}: {target}")
    assert seen > 50 and not broken


def test_every_command_of_the_pages_names_a_module_and_a_script_that_exist(pages: list[Path], repository: Path) -> None:
    missing, seen = [], 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"python -m ([\w.]+)", text):
            seen += 1
            if importlib.util.find_spec(module) is None:
                missing.append(f"{page.name}: python -m {module}")
        for script in re.findall(r"python ((?:benchmarks|examples)/[\w/]+\.py)", text):
            seen += 1
            if not (repository / script).exists():
                missing.append(f"{page.name}: python {script}")
    assert seen > 50 and not missing
