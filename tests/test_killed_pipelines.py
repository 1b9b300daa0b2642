"""A `dvc repro` that is killed during a training: nobody lives on, and the same command goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from dvc_projects import copy_code, copy_wiring, dvc
from whole_runs import alive, by_hand, run, wait_for

from tessera.cli.preset import edit

BESIDE = [sys.executable, "-m", "stage1_vqvae.train"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a process that its parent is gone")
def test_a_killed_pipeline_leaves_nobody_and_goes_on_to_the_same_model(tmp_path: Path, repository: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"stage1_vqvae.training.steps": 300, "stage1_vqvae.training.validate_every": 150}
    for project in (whole, killed):
        copy_code(repository, copy_wiring(repository, project))
        edit(project / "params.yaml", changes | {"runtime.threads": 1, "runtime.save_every": 20})
    dvc(whole, "repro", "train_vqvae")

    environment = by_hand(killed) | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    command = [sys.executable, "-m", "dvc", "repro", "train_vqvae"]
    with (tmp_path / "log").open("w") as log:
        pipeline = psutil.Popen(command, cwd=killed, env=environment, stdout=log, stderr=log)
        wait_for(lambda: bool(list(killed.glob(".state/train_vqvae/*/step-*"))), "no state was saved", seconds=120)
        family = pipeline.children(recursive=True)
        beside = run(killed, BESIDE, environment)
        pipeline.kill()
        pipeline.wait()
    wait_for(lambda: not any(alive(process) for process in family), f"still alive: {family}", seconds=5)
    assert beside.returncode == 75 and "is running stage1_vqvae.train in this folder" in beside.stderr
    assert not (killed / "models" / "vqvae").exists()

    done = run(killed, command, environment)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    for name in ("models/vqvae/model.safetensors", "results/train_vqvae/train.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in (killed / "models").iterdir() if path.name.startswith(".")]
