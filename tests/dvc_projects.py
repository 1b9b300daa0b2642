"""Copies of the project with their own DVC and Git, for the tests that run the pipeline through DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked_python

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


def commit(project: Path, message: str) -> None:
    for key, value in {"user.name": "test", "user.email": "test@example.org"}.items():
        subprocess.run(["git", "config", key, value], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    subprocess.run(["git", "commit", "--quiet", "-m", message], cwd=project, check=True)


def environment_of(project: Path, forked: bool) -> dict[str, str]:
    """The environment for DVC and its stages.

    Args:
        forked: whether the stages' `python` is that of forked_python.py, which saves seconds in each. Not for tests of
            signals: it kills a stage whatever the signal.
    """
    here = Path(sys.executable).parent
    own = forked_python.folder() if forked else None
    folders = [str(each) for each in (own, here) if each]
    found = forked_python.environment() if own else dict(os.environ)
    found = found | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(project.parent / "site")}
    found["PATH"] = os.pathsep.join([*folders, found["PATH"]])
    return found


def dvc(folder: Path, *arguments: str, fails: bool = False, forked: bool = False) -> str:
    """What a DVC command prints; it must succeed, or fail. See `environment_of` for `forked`."""
    environment = environment_of(folder, forked)
    python = shutil.which("python", path=environment["PATH"]) if forked else sys.executable
    command = [python, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout
