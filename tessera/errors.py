"""The one exception that a person is meant to read."""

from __future__ import annotations

from typing import ClassVar


class UserError(ValueError):
    """Something outside the code is wrong: says what was expected, what came, and what to do.

    Entry points print its message as one line and exit with its status; any other exception is a defect and keeps its
    traceback.
    """

    status: ClassVar[int] = 2
