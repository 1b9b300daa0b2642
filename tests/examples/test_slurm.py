"""The job scripts of examples/slurm, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_runs import HANGS, Environment, by_hand, wait_for

from tessera.parameters import read_yaml

SCRIPTS = Path(__file__).parents[2] / "examples" / "slurm"
# Starts the command once for each node, as Slurm does on each, and passes SIGTERM on.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq "$SLURM_NNODES"); do SLURM_NODEID=$((node - 1)) "$@" & done
trap 'kill -TERM $(jobs -p); wait' TERM
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; echo localhost; else echo "$@" >> scontrol.log; fi
"""
SBATCH = """#!/usr/bin/env bash
echo "$@" >> sbatch.log
wc -l < sbatch.log
"""


@pytest.fixture
def environment(in_tmp: Path, repository: Path) -> Environment:
    """Where Slurm's commands are found, and a job of two nodes without GPUs."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        path = in_tmp / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    found = by_hand(repository)
    job = {
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "nodes",
        "ACCELERATE_USE_CPU": "1",
    }
    where = os.pathsep.join([str(in_tmp / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return found | job | {"PATH": where}


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "install the development dependencies"
    done = subprocess.run([program, *map(str, SCRIPTS.glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_stage_is_a_job_that_waits_for_the_one_before(environment: Environment, repository: Path) -> None:
    command = [str(SCRIPTS / "pipeline.sh"), "--partition=gpu"]
    done = subprocess.run(command, env=environment | {"JOBS": "3", "NODES": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = Path("sbatch.log").read_text(encoding="utf-8").splitlines()
    stages = [job.split()[-1] for job in jobs]
    wired = read_yaml(repository / "dvc.yaml")["stages"]
    assert {stage["cmd"] for stage in wired.values()} == {
        *(f"python -m {stage}" for stage in stages),
        "python -m tessera fingerprint",
    }
    assert stages == [
        "stage0_images.prepare",
        "stage1_vqvae.train",
        "stage1_vqvae.refine",
        "stage1_vqvae.reconstruct",
        "stage1_vqvae.extract",
        "stage1_vqvae.extract",
        "stage2_prior.train",
        "sampling.sample",
        "sampling.sample",
        "evaluation.train_classifier",
        "evaluation.evaluate",
        "evaluation.report",
    ]
    assert all("--partition=gpu" in job for job in jobs) and "--dependency" not in jobs[0]
    assert all(f"--dependency afterok:{number} " in job for number, job in enumerate(jobs) if number)
    assert "--array 0-2 " in jobs[4] and "--nodes 2 " in jobs[1]


@pytest.mark.parametrize("given", [None, "7"])
def test_processes_that_save_get_more_than_half_a_minute(environment: Environment, given: str | None) -> None:
    program = Path("bin/torchrun")
    program.write_text("#!/bin/sh\necho $TORCH_ELASTIC_SHUTDOWN_TIMEOUT >> waits\n", encoding="utf-8")
    program.chmod(0o755)
    own = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": given} if given else {}
    subprocess.run([str(SCRIPTS / "train.sh"), "stage1_vqvae.train"], env=environment | own, check=True)
    assert Path("waits").read_text(encoding="utf-8").split() == [given or "600"] * 2


@pytest.mark.slow
def test_a_training_on_two_nodes_saves_and_requeues_itself_and_then_ends(
    in_tmp: Path, environment: Environment, write_params: Callable[..., None], write_prepared: Callable[..., None]
) -> None:
    write_prepared()
    steps = {"stage1_vqvae.training.steps": 300, "stage1_vqvae.training.validate_every": 100}
    write_params(steps | {"runtime.save_every": 20, "stage1_vqvae.training.batch_size": 16})
    command = [str(SCRIPTS / "train.sh"), "stage1_vqvae.train"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        wait_for(lambda: bool(list(Path(".state/train_vqvae").glob("*/step-*"))) or job.poll() is not None, "no state")
        job.send_signal(signal.SIGTERM)
        error = job.communicate(timeout=HANGS)[1]
    assert job.returncode == 0 and "stopped by SIGTERM" in error, error
    assert Path("scontrol.log").read_text(encoding="utf-8") == f"requeue {environment['SLURM_JOB_ID']}\n"
    assert not Path("models/vqvae").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    assert Path("models/vqvae/manifest.json").is_file()


@pytest.mark.slow
def test_jobs_of_an_array_make_the_parts_that_a_plain_run_makes(
    in_tmp: Path, environment: Environment, write_params: Callable[..., None], write_prepared: Callable[..., None]
) -> None:
    write_prepared()
    write_params({})

    def run(*command: str, **variables: str) -> str:
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=HANGS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "stage1_vqvae.train")
    run(sys.executable, "-m", "stage1_vqvae.extract")
    plain = {path.relative_to("data/codes"): path.read_bytes() for path in Path("data/codes").rglob("*.*")}
    shutil.rmtree("data/codes")
    for number in range(2):
        array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        assert f"share {number}/2: " in run(str(SCRIPTS / "parts.sh"), "stage1_vqvae.extract", **array)
        assert not Path("data/codes").exists()
    run(str(SCRIPTS / "stage.sh"), "stage1_vqvae.extract")
    assert {path.relative_to("data/codes"): path.read_bytes() for path in Path("data/codes").rglob("*.*")} == plain
