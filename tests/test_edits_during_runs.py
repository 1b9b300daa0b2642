"""Edits of code and parameters while a training runs: a comment costs nothing, and a real edit loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_runs import HANGS, Environment, by_hand, run, succeed, wait_for

from tessera.project import PACKAGES

pytestmark = pytest.mark.slow
Write = Callable[..., None]
COMMAND = [sys.executable, "-m", "stage1_vqvae.train"]
TASK = "stage1_vqvae/task.py"


@pytest.fixture
def project(in_tmp: Path, repository: Path, write_params: Write, write_prepared: Write) -> Path:
    """A copy of the project's code with prepared images and a training of a few seconds."""
    for package in PACKAGES:
        shutil.copytree(repository / package, in_tmp / package, ignore=shutil.ignore_patterns("__pycache__"))
    write_prepared()
    write_params(
        {"stage1_vqvae.training.steps": 400, "stage1_vqvae.training.validate_every": 100, "runtime.save_every": 50}
    )
    return in_tmp


@pytest.fixture
def environment(project: Path) -> Environment:
    return by_hand(project) | {"ACCELERATE_USE_CPU": "1"}


def run_with_edit(folder: Path, environment: Environment, edit: Callable[[], None]) -> tuple[int, str]:
    """Train, and edit once a state is saved; returns the exit status and what was printed."""
    with subprocess.Popen(COMMAND, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: bool(list(folder.glob(".state/train_vqvae/*/step-*"))), "no state was saved")
        edit()
        error = process.communicate(timeout=HANGS)[1]
    return process.returncode, error


def published(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("models/vqvae/*"), *folder.glob("results/train_vqvae/*.*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_comment_typed_during_a_training_and_after_it_costs_nothing(project: Path, environment: Environment) -> None:
    file = project / TASK

    def comment() -> None:
        file.write_text(f"# A comment.\n{file.read_text()}\n# Another.\n")

    status, error = run_with_edit(project, environment, comment)
    assert status == 0, error
    expected = published(project)
    assert len(expected) == 3 + 3
    comment()
    shutil.rmtree(project / "models")
    done = run(project, COMMAND, environment)
    assert done.returncode == 0 and "going on from step 400" in done.stderr and "note" not in done.stderr
    assert published(project) == expected


@pytest.mark.parametrize("edited", ["code", "parameters"])
def test_a_real_edit_during_a_training_loses_nothing(project: Path, environment: Environment, edited: str) -> None:
    file = project / (TASK if edited == "code" else "params.yaml")
    before = file.read_text()

    def edit() -> None:
        if edited == "code":
            file.write_text(before + "\nEDITED = True\n")
        else:
            values = json.loads(before)
            values["stage1_vqvae"]["training"]["seed"] = 5
            file.write_text(json.dumps(values))

    status, error = run_with_edit(project, environment, edit)
    (result,) = project.glob(".state/train_vqvae/*/finished-*")
    name = "/".join(result.parts[-3:])
    said = error.splitlines()[-1]
    assert status == 2 and file.name in said and f"It is kept in .state/{name}." in said
    old = published(project)
    # The command that the message names publishes the old result elsewhere.
    assert f"`python -m tessera states --publish {name} FOLDER`" in said
    succeed(project, [sys.executable, "-m", "tessera", "states", "--publish", name, "old"], environment)
    assert published(project / "old") == old
    # As DVC does it: the outputs are deleted before the stage runs again. The edited version trains anew.
    for folder in ("models", "results"):
        shutil.rmtree(project / folder)
    succeed(project, COMMAND, environment)
    new = published(project)
    assert len(list(project.glob(".state/train_vqvae/*/finished-*"))) == 2
    assert (new == old) == (edited == "code")  # that edit of the code changes no weight
    # With the edit undone, the result is published without training.
    file.write_text(before)
    shutil.rmtree(project / "models")
    done = run(project, COMMAND, environment)
    assert done.returncode == 0 and "going on from step 400" in done.stderr and "validated" not in done.stderr
    assert published(project) == old


def test_a_file_that_is_renamed_during_a_training_is_an_edit_that_can_be_undone(
    project: Path, environment: Environment
) -> None:
    file, elsewhere = project / TASK, project / "task.moved"
    status, error = run_with_edit(project, environment, lambda: shutil.move(file, elsewhere))
    said = error.splitlines()[-1]
    assert status == 2 and f"{TASK}: edited while this ran" in said and "It is kept in .state/train_vqvae/" in said
    elsewhere.rename(file)
    done = run(project, COMMAND, environment)
    assert done.returncode == 0 and "going on from step 400" in done.stderr and "validated" not in done.stderr
