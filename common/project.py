"""This project's own files: which a process has loaded, and whether they changed since it began."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "stage1_vqvae", "stage2_prior", "sampling")


def loaded() -> list[Path]:
    """The project's Python files that this process has imported, sorted."""
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    return sorted(file for file in files if any(file.is_relative_to(ROOT / package) for package in PACKAGES))


class Unchanged:
    """The contents of all the project's files, and of others, at one moment."""

    def __init__(self, *others: Path) -> None:
        files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
        self.others = others
        self.hashes = {file: self._hash(file) for file in (*files, *others)}

    @staticmethod
    def _hash(file: Path) -> bytes | None:
        return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else None

    def changed(self) -> list[Path]:
        """Those of the other files, and of the loaded ones, that are not as they were."""
        return [file for file in (*self.others, *loaded()) if self._hash(file) != self.hashes.get(file)]
