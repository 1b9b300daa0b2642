"""Copies of the project with their own DVC and Git, for the tests that run the pipeline through DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tessera.project import PACKAGES


def copy_wiring(source: Path, folder: Path) -> Path:
    """The wiring alone: dvc.yaml, params.yaml and the settings of DVC and Git."""
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(source / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def copy_code(source: Path, project: Path) -> None:
    """Copy the product's code and the file that DVC watches for the embedded images."""
    for room in PACKAGES:
        shutil.copytree(source / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(source / "data", project / "data", ignore=shutil.ignore_patterns("prepared", "codes"))


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What a DVC command prints; it must succeed, or fail."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # the stages' python
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout
