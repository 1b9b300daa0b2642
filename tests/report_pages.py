"""What tests read from a page of the report, and what holds for every page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from evaluation import report

SECTIONS = ["summary", "samples", "reconstructions", "bits", "codes", "prior", "curves", "copies", "distances", "run"]
VOID = {"meta", "link", "img", "br", "line", "rect", "circle", "polyline"}
DIRECTIONS = re.compile(r"better|best|No number says it")
LIMIT = 5_000_000  # bytes


class Document(HTMLParser):
    """What a test asks of a page.

    Attributes:
        text: what a reader sees.
        figures: of each figure its title, its explanations, and the kinds of elements in it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.unnamed: list[str] = []  # pictures without words
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.size = file.stat().st_size
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        assert not [name for name in given if name.startswith("on")], f"{tag} has a handler"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "section":
            self.sections.append(given["id"] or "")
        if tag == "figure":
            self.figures.append({"title": "", "how": [], "tags": set()})
        if self.open and "figure" in self.open:
            self.figures[-1]["tags"].add(tag)
        if tag == "img" and not given.get("alt"):
            self.unnamed.append(tag)
        if tag == "svg" and not given.get("aria-label") and given.get("aria-hidden") != "true":
            self.unnamed.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" in self.open or not data.strip():
            return
        self.words.append(data)
        if "figure" in self.open and self.open[-1] == "h3":
            self.figures[-1]["title"] += data
        if "figcaption" in self.open:
            self.figures[-1]["how"].append(data)


def check(page: Document) -> None:
    """What holds for every page."""
    assert page.size < LIMIT and "script" not in page.tags and not page.unnamed
    assert all(address.startswith(("#", "data:")) for address in page.addresses), page.addresses
    assert "iframe" not in page.tags and "object" not in page.tags
    for figure in page.figures:
        assert figure["title"] and figure["tags"] & {"svg", "img", "table", "div"}
        said = " ".join(figure["how"])
        assert len(said) > 60 and DIRECTIONS.search(said), figure["title"]
        assert re.search(r"image|sample|split|shown", said), f"{figure['title']}: on how many images?"


def run(*stages: Any) -> None:
    for stage in stages:
        assert stage.main([]) == 0, stage.__name__


def written() -> Document:
    """The report of the run here."""
    run(report)
    page = Document(report.REPORT)
    check(page)
    assert page.sections == SECTIONS
    return page
