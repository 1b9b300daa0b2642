"""Reads a published folder while another process may publish it anew."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from tessera.artifacts.manifests import MANIFEST
from tessera.errors import UserError

LOOKS, LOOK_APART = 20, 0.05  # how often a folder that is being replaced is looked for, and the seconds in between

Load = TypeVar("Load", bound=Callable[..., Any])


def settled(load: Load) -> Load:
    """Decorate a function that opens a published folder, its first argument, and may raise `UserError`.

    If another process has published the folder anew meanwhile, the function is called again. It may have read the
    old manifest and a new file, which would look like damage.
    """

    @wraps(load)
    def loading(folder: Path, *arguments: Any, **options: Any) -> Any:
        while True:
            before = _generation(folder)
            try:
                return load(folder, *arguments, **options)
            except UserError:
                if _generation(folder) == before:
                    raise

    return loading


def _generation(folder: Path) -> tuple[int, ...] | None:
    """What differs whenever a folder was published anew; None if there is none."""
    for _ in range(LOOKS):
        with suppress(OSError):
            status = os.stat(folder / MANIFEST)
            return status.st_dev, status.st_ino, status.st_mtime_ns
        if not any(folder.parent.glob(f".{glob.escape(folder.name)}.old-*")):
            break
        time.sleep(LOOK_APART)  # a publisher is between its two renames, or was killed there
    return None
