"""Which cases of a test are fast ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases of a parametrized test; those that are not named as fast run with the slow tests."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
