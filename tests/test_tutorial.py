"""docs/tutorial.md from its first command to its last, in a clone, with fewer images and less time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc_projects import copy_code, copy_wiring, environment_of
from PIL import Image

LESS = {"--count 1500": "--count 60", "--minutes 10": "--minutes 1"}


def commands(page: Path) -> str:
    """The page's shell commands, one after the other, with less to do."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    script = "\n".join(blocks)
    for much, little in LESS.items():
        assert script.count(much) == 1, f"{page.name} has no longer {much}"
        script = script.replace(much, little)
    return script


@pytest.mark.slow
def test_every_command_of_the_tutorial_works(repository: Path, tmp_path: Path) -> None:
    project = copy_wiring(repository, tmp_path / "clone")
    copy_code(repository, project)
    for folder in ("examples", "presets"):
        shutil.copytree(repository / folder, project / folder)
    name = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    environment = environment_of(project, forked=True) | name
    subprocess.run("git add -A && git commit -qm code", shell=True, cwd=project, env=environment, check=True)

    script = commands(repository / "docs/tutorial.md")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "counts" in done.stdout and "total_prior" in done.stdout  # what compare shows
    for picture in ("results/sample/grid.png", "flowers.png", "completed.png"):
        with Image.open(project / picture) as image:
            assert image.convert("L").getextrema()[1] > 0
    left = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    assert all(line.startswith("??") for line in left.stdout.splitlines()), left.stdout  # the first run is back
