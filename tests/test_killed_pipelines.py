"""A `dvc repro` that is killed during a training: nobody lives on, and the same command goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from dvc_projects import copy_code, copy_wiring, dvc
from whole_runs import Environment, alive, by_hand, run, wait_for

from tessera.cli.preset import edit

REPRO = [sys.executable, "-m", "dvc", "repro", "train_vqvae"]
BESIDE = [sys.executable, "-m", "stage1_vqvae.train"]


def newest_state(folder: Path) -> int:
    """The step of the newest saved state, or 0."""
    return max((int(path.name.partition("-")[2]) for path in folder.glob(".state/train_vqvae/*/step-*")), default=0)


def killed_by(number: signal.Signals, folder: Path, environment: Environment) -> int:
    """Start the pipeline, send DVC a signal once a newer state is saved, and see everybody end.

    Returns:
        The exit status of a run by hand beside the pipeline.
    """
    before = newest_state(folder)
    with (folder / "log").open("w") as log:
        pipeline = psutil.Popen(REPRO, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: newest_state(folder) > before or not alive(pipeline), "no state was saved", seconds=120)
        family = [pipeline, *pipeline.children(recursive=True)]
        beside = run(folder, BESIDE, environment)
        # A terminal sends Ctrl-C to all processes. DVC alone ignores it while a stage runs.
        (os.killpg if number == signal.SIGINT else os.kill)(pipeline.pid, number)
        wait_for(
            lambda: pipeline.poll() is not None and not any(map(alive, family)),
            f"{number.name}: still alive: {family}",
            seconds=5,
        )
    said = (folder / "log").read_text(encoding="utf-8")
    assert (f"going on from step {before} (" in said) == (before > 0), said
    assert "is running stage1_vqvae.train in this folder" in beside.stderr, (beside.stderr, said)
    return beside.returncode


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process that its parent is gone")
def test_a_killed_pipeline_leaves_nobody_and_goes_on_to_the_same_model(tmp_path: Path, repository: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"stage1_vqvae.training.steps": 800, "stage1_vqvae.training.validate_every": 400}
    for project in (whole, killed):
        copy_code(repository, copy_wiring(repository, project))
        edit(project / "params.yaml", changes | {"runtime.threads": 1, "runtime.save_every": 20})
    dvc(whole, "repro", "train_vqvae")

    environment = by_hand(killed) | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL):
        assert killed_by(number, killed, environment) == 75
        assert not (killed / "models" / "vqvae").exists()

    done = run(killed, REPRO, environment)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    for name in ("models/vqvae/model.safetensors", "results/train_vqvae/train.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in (killed / "models").iterdir() if path.name.startswith(".")]
