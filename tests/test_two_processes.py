"""Whole processes: two against one, runs that are interrupted and started again, launchers."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
Write = Callable[..., None]

# Runs an entry point and notes on every process what its codebooks and weights were after each step.
NOTED = """
import sys
from safetensors.torch import save_file
from tessera.distributed import world
from stage1_vqvae import train
from stage1_vqvae.task import VQVAETask

update, notes = VQVAETask.update, {}

def noted(self, step):
    scalars = update(self, step)
    for name, tensor in self.model.state_dict().items():
        if name.startswith("quantizers") or step % 10 == 9:
            notes[f"{step:03d}.{name}"] = tensor.clone()
    save_file(notes, f"rank{world()[0]}.safetensors")
    return scalars

VQVAETask.update = noted
sys.exit(train.main([]))
"""


@pytest.fixture
def environment(repository: Path) -> dict[str, str]:
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "DVC_ROOT", "ACCELERATE_USE_CPU")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "PYTHONPATH": str(repository),
        "OMP_NUM_THREADS": "1",
    }


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def run(folder: Path, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)


def succeed(folder: Path, command: list[str], environment: dict[str, str]) -> None:
    done = run(folder, command, environment)
    assert done.returncode == 0, done.stderr


def copies(here: Path, *names: str) -> list[Path]:
    """The current folder's parameters, data and models, once for each name."""
    made = []
    for name in names:
        folder = here.with_name(f"{here.name}_{name}")
        shutil.copytree(here, folder)
        made.append(folder)
    return made


def column(folder: Path, stage: str, name: str) -> list[float]:
    with (folder / "results" / stage / "train.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def two_against_one(folders: list[Path], arguments: list[str], environment: dict[str, str]) -> None:
    one, two = folders
    succeed(one, [sys.executable, *arguments], environment)
    succeed(two, [*torchrun(2), *arguments], environment | {"ACCELERATE_USE_CPU": "1"})


VQ = {"codebook_size": 8, "codebook_dim": 4, "revival_threshold": 0.3, "start": "kmeans"}
BITS = {"bits": 4, "entropy_group_bits": 4}
QUANTIZERS: dict[str, tuple[str, str | None, dict]] = {  # name, name of the one inside, changes of the innermost
    "ema": ("vq", None, VQ | {"codebook_update": "ema"}),
    "gradient": ("vq", None, VQ | {"codebook_update": "gradient", "entropy_bonus": 0.1}),
    "residual, shared": ("residual", "vq", VQ),
    "grouped, shared": ("grouped", "vq", VQ),
    "drawn": ("soft_em", None, VQ),
    "entropy": ("lfq", None, BITS),
}


@pytest.mark.parametrize("label", list(QUANTIZERS))
def test_two_processes_train_the_vqvae_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: dict[str, str], label: str
) -> None:
    name, inside, changes = QUANTIZERS[label]
    section = f"stage1_vqvae.quantizer.{name}."
    if inside:
        section_changes = {section + "share_codebook": True, section + "quantizer.name": inside}
        section += f"quantizer.{inside}."
    else:
        section_changes = {}
    section_changes |= {section + key: value for key, value in changes.items()}
    write_prepared((3, 8, 16), classes=0)
    write_params(
        {
            "data.channels": 3,
            "data.width": 16,
            "stage1_vqvae.network.conv.strides": [2, 2],
            "stage1_vqvae.quantizer.name": name,
            **section_changes,
            "stage1_vqvae.augmentation.horizontal_flip": True,
            "stage1_vqvae.training.steps": 20,
            "stage1_vqvae.training.batch_size": 16,
            "stage1_vqvae.training.learning_rate": 5e-4,
        }
    )
    (in_tmp / "noted.py").write_text(NOTED, encoding="utf-8")
    one, two = copies(in_tmp, "one", "two")
    two_against_one([one, two], ["noted.py"], environment)
    ranks = [load_file(two / f"rank{rank}.safetensors") for rank in (0, 1)]
    alone = load_file(one / "rank0.safetensors")
    assert ranks[0].keys() == ranks[1].keys() == alone.keys() and len(alone) > 40
    assert any("quantizers" in name for name in alone) == (name != "lfq")
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), name  # bit for bit, after every step
        # A vector just between two codes may change sides, which moves a count by 1 - decay, a few times at most.
        close = 0.03 if "ema_" in name and name > "005" else 1e-4
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=close, msg=name)
    # The perplexity shows such a vector too, as one count of the batch, in a few steps; that of half a batch is further
    # off in every step.
    relative = {"loss": 0, "distortion": 0, "quantizer_loss": 0, "grad_norm": 1e-4, "perplexity": 1e-3}
    for name, close in relative.items():
        losses = [torch.tensor(column(folder, "train_vqvae", name)) for folder in (one, two)]
        assert len(losses[0]) == 20
        torch.testing.assert_close(losses[0], losses[1], rtol=close, atol=1e-5, msg=name)
        assert name != "perplexity" or ((losses[0] - losses[1]).abs() > 1e-5).sum() <= 3


@pytest.mark.parametrize("prior", ["pixelcnn", "transformer", "masked"])
def test_two_processes_train_the_prior_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: dict[str, str], prior: str
) -> None:
    write_prepared()
    write_params(
        {
            "stage1_vqvae.training.steps": 3,
            "stage2_prior.name": prior,
            "stage2_prior.dropout": 0.0,
            "stage2_prior.training.steps": 20,
        }
    )
    for module in ("stage1_vqvae.train", "stage1_vqvae.extract"):
        succeed(in_tmp, [sys.executable, "-m", module], environment)
    one, two = copies(in_tmp, "one", "two")
    two_against_one([one, two], ["-m", "stage2_prior.train"], environment)
    losses = [torch.tensor(column(folder, "train_prior", "loss")) for folder in (one, two)]
    assert len(losses[0]) == 20
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)
    weights = [load_file(folder / "models/prior/model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-3)


def test_two_processes_extract_the_bytes_that_one_does(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: dict[str, str]
) -> None:
    # More than two rounds of what two processes encode at a time in one split, fewer images than processes in another.
    write_prepared(images={"train": 300, "validation": 70, "test": 1})
    write_params({"stage1_vqvae.training.steps": 3})
    succeed(in_tmp, [sys.executable, "-m", "stage1_vqvae.train"], environment)
    one, two = copies(in_tmp, "one", "two")
    two_against_one([one, two], ["-m", "stage1_vqvae.extract"], environment)
    files = [{p.relative_to(f): p.read_bytes() for p in (f / "data/codes").rglob("*.*")} for f in (one, two)]
    assert files[0] == files[1] and len(files[0]) == 3 * 2 + 2


def test_processes_that_would_each_train_alone_are_refused(
    in_tmp: Path, write_params: Write, write_prepared: Write, environment: dict[str, str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("with GPUs, Accelerate connects torchrun's processes without being told")
    write_prepared()
    write_params()
    done = run(in_tmp, [*torchrun(2), "-m", "stage1_vqvae.train"], environment)
    assert done.returncode != 0
    assert done.stderr.count("error: WORLD_SIZE is 2 but Accelerate sees 1 process") == 1
    assert "set ACCELERATE_USE_CPU=1" in done.stderr
    assert not (in_tmp / "models").exists() and not (in_tmp / ".state").exists()


@pytest.fixture
def long_run(in_tmp: Path, write_params: Write, write_prepared: Write) -> list[Path]:
    """Two folders with the same run of a few seconds that has plenty of steps to be interrupted at."""
    write_prepared()
    write_params(
        {
            "stage1_vqvae.training.steps": 600,
            "stage1_vqvae.training.batch_size": 16,
            "stage1_vqvae.training.validate_every": 200,
            "stage1_vqvae.training.weight_ema_decay": 0.99,
            "runtime.save_every": 50,
            "runtime.log_every": 20,
        }
    )
    return copies(in_tmp, "whole", "stopped")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".state/train_vqvae/*/step-*"))


def lock_is_free(folder: Path) -> bool:
    """Whether no process holds the run's folder any more."""
    import fcntl

    (lock,) = folder.glob(".state/train_vqvae/*/lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def interrupt(folder: Path, command: list[str], environment: dict[str, str], number: signal.Signals) -> tuple[int, str]:
    """Start a run, press Ctrl-C (all of its processes get the signal) once it has saved a state, and wait."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: bool(saved(folder)) or process.poll() is not None)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    wait_for(lambda: lock_is_free(folder))
    return process.returncode, error


MODULE = ["-m", "stage1_vqvae.train"]
LAUNCHERS = {
    "python": [sys.executable, *MODULE],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *MODULE],
    "torchrun": [*torchrun(2), *MODULE],
}


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("python", signal.SIGINT),
        ("python", signal.SIGTERM),
        ("python", signal.SIGKILL),
        ("accelerate", signal.SIGINT),
        ("torchrun", signal.SIGINT),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    long_run: list[Path], environment: dict[str, str], launcher: str, number: signal.Signals
) -> None:
    whole, stopped = long_run
    environment = environment | {"ACCELERATE_USE_CPU": "1"}
    command = LAUNCHERS[launcher]
    succeed(whole, command, environment)
    code, error = interrupt(stopped, command, environment, number)
    assert code != 0, error
    if launcher == "python" and number != signal.SIGKILL:
        assert code == 128 + number
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}; the same command goes on from here" in error
    assert "step-000000600" not in saved(stopped) and not (stopped / "models").exists()
    done = run(stopped, command, environment)
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    found = [load_file(folder / "models/vqvae/model.safetensors") for folder in (whole, stopped)]
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-5, msg=name)
    assert column(whole, "train_vqvae", "loss") == pytest.approx(column(stopped, "train_vqvae", "loss"), abs=1e-5)


def test_a_second_run_beside_the_first_is_refused(long_run: list[Path], environment: dict[str, str]) -> None:
    folder, command = long_run[0], LAUNCHERS["python"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: bool(list(folder.glob(".state/train_vqvae/*/lock"))))
        wait_for(lambda: not lock_is_free(folder))
        first.send_signal(signal.SIGSTOP)  # it would else be done before the second has imported its packages
        second = run(folder, command, environment)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert f"process {first.pid} is already running this very stage" in second.stderr
        assert first.wait(timeout=120) == 0
