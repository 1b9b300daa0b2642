"""Packages and programs that only some tests need: extras of pyproject.toml, and a browser."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest


def require(*modules: str, programs: tuple[str, ...] = ()) -> None:
    """Skip the test where modules or programs are missing. It fails instead if TESSERA_EXTRAS is "required"."""
    missing = [name for name in modules if find_spec(name) is None]
    missing += [name for name in programs if shutil.which(name) is None]
    if missing:
        reason = f"{', '.join(missing)}: not installed; .ci/run installs what the tests of the extras need"
        if os.environ.get("TESSERA_EXTRAS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
