"""The one exception that a person is meant to read, and how text from outside is shown."""

from __future__ import annotations

import unicodedata
from typing import ClassVar

# Characters that steer a terminal or hide text: controls (with newlines and ANSI's escape), halves of surrogate pairs,
# separators of lines and paragraphs, and those that change the direction of text.
STEERING = frozenset(("Cc", "Cs", "Zl", "Zp"))
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Text that is shown as it is, in one line, on any terminal: all other characters are written as escapes.

    Names of files, classes and columns come from outside, and may hold anything.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if c in DIRECTION or unicodedata.category(c) in STEERING else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else repr(character)[1:-1]


class UserError(ValueError):
    """Something outside the code is wrong: says what was expected, what came, and what to do.

    Entry points print its message as one line and exit with its status; any other exception is a defect and keeps its
    traceback. The message is made printable, whatever names it holds.
    """

    status: ClassVar[int] = 2

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))
