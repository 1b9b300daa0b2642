"""A share of a stage's parts, for jobs that know nothing of one another. Imports no torch."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Every `count`-th part, from part `number` on, which counts from 0."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parsed(text: str) -> Share:
    """The share that a text such as "0/16" names: part number, from 0, and number of parts.

    Raises:
        ArgumentTypeError: the text is not of this form, or the number is not below the number of parts.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    share = Share(*map(int, found.groups())) if found else None
    if share is None or share.number >= share.count:
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/16, got {text!r}")
    return share


def add_share(parser: argparse.ArgumentParser) -> None:
    """Add the option --share."""
    parser.add_argument(
        "--share",
        type=parsed,
        metavar="I/N",
        help="make only every N-th part from part I on, and publish nothing: for jobs of an array. The same command "
        "without options puts the parts together, makes those that are missing, and publishes",
    )
