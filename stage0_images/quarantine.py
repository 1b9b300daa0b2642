"""Keeps a list of the images that were refused, and of the files of the source that are not read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage0_images.columns import Aside, left_aside
from stage0_images.parameters import DataParams
from tessera.errors import UserError

NAMED = 3  # refused images that a message names


@dataclass
class Quarantine:
    """The images that were refused so far, and the files that are not read.

    Attributes:
        total: the number of all images, good and bad.
        aside: the files that are not read.
        rows: for each refused image its split and index in the source, its file if known, and the reason.
    """

    total: int
    aside: tuple[Aside, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, split: str, index: int, file: str | None, reason: str) -> None:
        """Record a refused image."""
        self.rows.append({"split": split, "index": index, "file": file, "reason": reason})

    def write(self, file: Path) -> None:
        """Write a line of JSON for each refused image, and for each file that is not read: its split is null."""
        others = [{"split": None, "index": None, "file": one.file, "reason": one.reason} for one in self.aside]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in [*self.rows, *others]]
        # A file name in a table may hold half of a surrogate pair. It is written with JSON's own escapes.
        file.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")

    def keep(self, place: Path) -> bool:
        """Write the list to a place outside the prepared images, unless it is empty. Returns whether it is there."""
        if not self.rows and not self.aside:
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        self.write(place)
        return True

    def check(self, params: DataParams, kept: dict[str, int], place: Path) -> None:
        """Refuse a source of which too many images were refused. The whole list is then written to `place`.

        Args:
            kept: the number of good images in each split.

        Raises:
            UserError: more than `data.max_bad_fraction` of all images were refused, or all of a split. The message
                has the first three reasons.
        """
        empty = [name for name, count in kept.items() if not count]
        if len(self.rows) <= params.max_bad_fraction * self.total and not empty:
            place.unlink(missing_ok=True)
            return
        self.keep(place)
        why, remedy = f"over data.max_bad_fraction ({params.max_bad_fraction})", "or raise it"
        if len(self.rows) <= params.max_bad_fraction * self.total:
            why, remedy = f"all of the split {empty[0]}", "or add others"
        first = "; ".join(map(_told, self.rows[:NAMED]))
        raise UserError(
            f"data.source: {params.source!r}: {len(self.rows)} of {self.total} images refused, {why}; {place} lists "
            f"them all; mend or remove them, {remedy}; first: {first}"
        )

    def summary(self, place: Path) -> str:
        """How many images were refused, the first of them, and how many files of each kind are not read.

        Args:
            place: where the list is, which is named if it is not empty.
        """
        refused = f"{len(self.rows)} refused" + (f" (first: {_told(self.rows[0])})" if self.rows else "")
        text = ", ".join(filter(None, (refused, left_aside(self.aside))))
        return f"{text} (listed in {place})" if self.rows or self.aside else text


def _told(row: dict[str, Any]) -> str:
    """Which image was refused, and why."""
    return f"{row['split']} {row['file'] or 'row ' + str(row['index'])}: {row['reason']}"
