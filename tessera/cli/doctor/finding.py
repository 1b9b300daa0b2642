"""One line of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tessera.errors import printable


class Level(IntEnum):
    """How serious a finding is. The pipeline does not run until an error is corrected; it runs with a warning."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """Attributes:
    about: a word or two.
    text: what was found, and what to do if it is not well.
    """

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level.name.lower():<8} {self.about:<12} {printable(self.text)}"
