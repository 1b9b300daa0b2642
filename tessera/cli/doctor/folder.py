"""The working folder: its code, Git, DVC, saved states and source of images."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from stage0_images.places import check_places
from tessera import paths
from tessera.cli.doctor.finding import Finding, Level
from tessera.errors import UserError
from tessera.parameters import Params
from tessera.project import PACKAGES, ROOT
from tessera.training.checks import require_initial_folders
from tessera.training.running import all_runs, all_states, running, used_by

OLD_DAYS = 14  # a saved state that is older is named


def look() -> Iterator[Finding]:
    """What does not depend on the parameters."""
    yield from _code()
    yield from _writable()
    yield from _git()
    yield from _states()


def look_at_source(params: Params) -> Iterator[Finding]:
    """Whether the images are where `data.source` says."""
    try:
        check_places(params.data)
    except UserError as error:
        yield Finding(Level.ERROR, "images", str(error))
    else:
        yield Finding(Level.OK, "images", params.data.source)


def look_at_initial(params: Params) -> Iterator[Finding]:
    """A published model that a training should begin with, and that is not there."""
    try:
        require_initial_folders(params)
    except UserError as error:
        yield Finding(Level.ERROR, "weights", str(error))


def _code() -> Iterator[Finding]:
    here = Path.cwd()
    own = [name for name in PACKAGES if (here / name).is_dir()]
    if own and not here.samefile(ROOT):
        yield Finding(
            Level.WARNING, "code", f"{ROOT} is imported, and not the code in this folder; `pip install -e {here}`"
        )
    else:
        yield Finding(Level.OK, "code", str(ROOT))


def _writable() -> Iterator[Finding]:
    """Each folder in which stages write that does not let them. They put what they publish in place from beside it."""
    for place in sorted({*(path.parent for path in paths.WRITTEN), paths.MODELS, paths.RESULTS, all_states()}):
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            yield Finding(Level.ERROR, "folder", f"{place.absolute()} cannot be written; stages write below it")


def _git() -> Iterator[Finding]:
    if not Path(".dvc").is_dir():
        yield Finding(
            Level.WARNING, "dvc", "this folder is no DVC project; `dvc init` (or `dvc init --no-scm`) makes it"
        )
    if shutil.which("git") is None:
        yield Finding(Level.WARNING, "git", "not found; `dvc exp` and `compare` need it")
        return
    done = subprocess.run(
        ["git", "status", "--porcelain"],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        text = "this folder is in no Git repository; `dvc exp` and `compare` need one"
        if "not a git repository" not in done.stderr:
            text = f"`git status` fails, and so will `dvc exp` and `compare`: {' '.join(done.stderr.split())[:400]}"
        yield Finding(Level.WARNING, "git", text)
        return
    changed = [line[3:] for line in done.stdout.splitlines()]
    new = [line[3:] for line in done.stdout.splitlines() if line.startswith("??") and line.endswith(".py")]
    if new:
        yield Finding(
            Level.WARNING, "git", f"new Python files, which `dvc exp run --temp` does not see: {', '.join(new[:3])}"
        )
    yield Finding(Level.OK, "git", f"{len(changed)} files changed or new" if changed else "nothing changed")


def _states() -> Iterator[Finding]:
    """How much disk saved states take, and which are old."""
    folders = all_runs()
    if not folders:
        return
    alive = [path for stage in {path.parent.name for path in folders} for path in running(stage)]
    size, written = used_by(all_states()).bytes, [used_by(path).written for path in folders]
    old = [when for when in written if when is not None and time.time() - when > 86400 * OLD_DAYS]
    text = f"{len(folders)} runs, {size / 1e6:,.0f} MB in {os.fspath(all_states())}; {len(alive)} running now"
    if old:
        yield Finding(Level.WARNING, "states", f"{text}; {len(old)} older than {OLD_DAYS} days")
    else:
        yield Finding(Level.OK, "states", text)
