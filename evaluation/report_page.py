"""What a page of the report is made of, and how it becomes one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.figures import HIGHER, LOWER
from evaluation.findings import Finding

TEMPLATES = Path(__file__).parent / "templates"
DIRECTIONS = {LOWER: "Lower is better.", HIGHER: "Higher is better.", None: "Neither direction is better by itself."}


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. A folded one is shown when a reader opens it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """Something to look at: a chart, a table, a picture, or several of them under one title.

    Attributes:
        parts: tables, charts or pictures, in the order in which they are shown. Each has a `kind`, which the template
            page.html knows.
        what: sentences that say what it means.
        better: a sentence that says which direction is better, or that neither is.
        images: words that say which images it is of, and how many.
    """

    title: str
    parts: list[Any]
    what: str
    better: str
    images: str


@dataclass(frozen=True)
class Card:
    """One figure as a number; see `Figure`."""

    name: str
    value: str
    what: str
    better: str
    images: str


@dataclass
class Section:
    """A part of the page with a title."""

    id: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(self, title: str, parts: list[Any], what: str, better: str, images: str) -> None:
        """Add a `Figure` of those parts that are not None, or nothing if all are. For the others see `Figure`."""
        if parts := [part for part in parts if part is not None]:
            self.figures.append(Figure(title, parts, what, better, images))


@dataclass(frozen=True)
class Page:
    """A whole page: its title, some lines below it, its sections, and the last line."""

    title: str
    lead: list[str]
    sections: list[Section]
    foot: str


def html(page: Page) -> str:
    """The page as HTML. All text is escaped; what UTF-8 cannot hold is replaced."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["code"] = _with_code
    text = environment.get_template("page.html").render(page=page)
    return text.encode("utf-8", "replace").decode("utf-8")


def _with_code(text: str) -> Any:
    """Text as HTML, escaped, with what stands between `backticks` as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
