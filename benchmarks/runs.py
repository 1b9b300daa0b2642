"""What the benchmarks that train share: parameters from a preset, images prepared once, a training with a clock."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from repository import REPOSITORY

from stage0_images import prepare
from stage1_vqvae.model import VQVAE
from stage1_vqvae.task import VQVAETask
from tessera import paths
from tessera.cli.preset import leaves, patch, read_changes, read_preset
from tessera.images.prepared import ImageSplit, PreparedImages, open_prepared
from tessera.launch.devices import accelerator
from tessera.parameters import Params, read_yaml, validate
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.randomness import seed_of
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.progress import Progress
from tessera.training.running import FINISHED, LOCK, STEP, states_of
from tessera.training.task import Task
from tessera.training.tracking import Row

RESULTS = REPOSITORY / "benchmarks" / "results"
STAGE1 = "stage1_vqvae."
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}  # by flag of Linux
NO_SETTINGS = ("runtime.", "data.source", "data.watch")  # beginnings of what changes no figure


def code_of(*files: Path) -> str:
    """What the code of these files hashes to, so that a row says what it is of."""
    return sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def hash_of(params: Params) -> str:
    """A hash of all parameters that change figures, by which rows of the same parameters are found."""
    values = {path: value for path, value in leaves(params.values()).items() if not path.startswith(NO_SETTINGS)}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def processor(device: str | None = None) -> str:
    """The name of what computes on a device, "cpu" or "cuda"; None: of this machine's GPU, or else of its processor.

    Processors of one name may differ in their vector instructions, so these are part of it.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    instructions = [INSTRUCTIONS[flag] for flag in INSTRUCTIONS if flag in first.get("flags", "").split()]
    name = first.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(instructions)})" if instructions else name


def absolute(text: str) -> Path:
    """A path that stays right when the folder is changed."""
    return Path(text).resolve()


def arguments(description: str, rows: str) -> argparse.ArgumentParser:
    """The command line that they share; `rows` is the name of the file of figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = REPOSITORY / ".state" / "benchmarks"
    parser.add_argument("dataset", type=absolute, help="CIFAR-10: a local folder in the Hub's layout")
    parser.add_argument("--folder", type=absolute, default=scratch, help="for scratch (default: %(default)s)")
    parser.add_argument("--rows", type=absolute, default=RESULTS / rows, help="JSON lines (default: %(default)s)")
    parser.add_argument("--plot", type=absolute, help="also draw the figures, into this file")
    parser.add_argument("--threads", type=int, help="default: every core")
    return parser


def parameters(changes: dict[str, Any], preset: str = "cifar10", dataset: Path | None = None) -> Params:
    """params.yaml of this repository with a preset, the images of a folder, and changes by dotted path."""
    tree = read_yaml(REPOSITORY / paths.PARAMS)
    source = read_changes([f"data.source={dataset}"]) if dataset else {}
    patch(tree, read_preset(preset) | source | changes)
    return validate(tree, f"presets/{preset}.yaml with the benchmark's changes")


def schedule(steps: int, validations: int = 1) -> dict[str, Any]:
    """Changes for a whole schedule in `steps` steps, validated at equal distances."""
    return {
        STAGE1 + "training.steps": steps,
        STAGE1 + "training.warmup_steps": min(100, steps // 10),
        STAGE1 + "training.validate_every": max(1, steps // validations),
    }


def images(folder: Path, params: Params) -> PreparedImages:
    """The dataset as `python -m stage0_images.prepare` leaves it; made once a folder, for one set of parameters.

    Goes into the folder: that is where the product reads and writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    wanted, made = json.dumps(params.data.values(), indent=2), Path("data.json")
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        prepare.run(params, argparse.Namespace())
        made.write_text(wanted, encoding="utf-8")
    return open_prepared(paths.PREPARED)


def unsaved() -> StateFolder:
    """A trainer's state folder that keeps nothing: every run of a benchmark starts from the beginning."""
    return StateFolder("benchmark", "unsaved", exclusive=False)


class Timed:
    """A task with a clock that stands still while it validates; it counts the start and compilation too."""

    def __init__(self, task: VQVAETask, on_validation: Callable[[Row], None]) -> None:
        self.task, self.on_validation = task, on_validation
        self.began, self.validating, self.marks = time.perf_counter(), 0.0, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began - self.validating

    def update(self, step: int) -> dict[str, torch.Tensor]:
        result = self.task.update(step)
        self.marks.append(self.seconds)
        return result

    def validate(self) -> dict[str, float]:
        seconds, began = self.seconds, time.perf_counter()
        metrics = self.task.validate()
        self.on_validation({"step": len(self.marks), "seconds": seconds, **metrics})
        self.validating += time.perf_counter() - began
        return metrics


@dataclass
class Run:
    """A finished training: the model with its best weights, its curve, and what a step took."""

    task: VQVAETask
    progress: Progress
    curve: list[Row] = field(default_factory=list)  # rows of step, seconds (validation not counted), nmse, ...
    seconds_a_step: float = 0.0  # median


def task_of(params: Params, prepared: PreparedImages, validation: ImageSplit | None = None) -> VQVAETask:
    """Model and task as `stage1_vqvae.train` builds them; `validation` in place of the split of that name."""
    section = params.stage1_vqvae
    config = section.config(prepared.stats)
    torch.manual_seed(seed_of("initialise", section.training.seed))
    judged = validation or prepared["validation"]
    return VQVAETask(VQVAE(config), prepared["train"], judged, section.training, section.augmentation)


def train(
    params: Params,
    prepared: PreparedImages,
    on_validation: Callable[[Row], None] = lambda row: None,
    validation: ImageSplit | None = None,
) -> Run:
    """Train as `stage1_vqvae.train` does, compiled anew, without saving states."""
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # or a second run would find the first one's kernels
        device, curve = accelerator(params.runtime), []
        task = Timed(task_of(params, prepared, validation), lambda row: (curve.append(row), on_validation(row)))
        progress = Trainer(task, params.stage1_vqvae.training, params.runtime, device, unsaved()).run()
    steps = [after - before for before, after in zip(task.marks, task.marks[1:], strict=False)]
    return Run(task.task, progress, curve, torch.tensor(steps).median().item() if steps else task.seconds)


class Steps:
    """The trainer's own steps, one at a call, so that nothing is left out."""

    def __init__(self, task: Task, training: TrainingParams, runtime: RuntimeParams) -> None:
        self.task = task
        self.trainer = Trainer(task, training, runtime, accelerator(runtime), unsaved())
        task.model.train()
        if training.compile:
            task.compile()
        self.count = 0

    def __call__(self, batch: dict[str, torch.Tensor]) -> float:
        """One step on a batch of the task's; returns its loss (`runtime.log_every` must be 1)."""
        self.trainer.stepper.take(self.count, batch, self.trainer.progress)
        self.count += 1
        return self.trainer.progress.train[-1]["loss"]


class Watched:
    """The trainings of a stage from now on. A clock shows only the end of one that goes on from a saved state."""

    def __init__(self, stage: str) -> None:
        self.stage, self.before = stage, _saved(stage)

    def went_on(self) -> bool:
        """Whether a training has begun with a state or a result that was saved before.

        A training writes the lock of its folder. Folders of trainings with other parameters therefore do not count.
        """
        for folder, (written, names) in _saved(self.stage).items():
            written_before, names_before = self.before.get(folder, (None, set()))
            if written == written_before or not names_before:
                continue
            # Other code leaves a result alone, trains anew, and saves a result of another name.
            anew = any(name.startswith(FINISHED) for name in names - names_before)
            if any(name.startswith(STEP) for name in names_before) or not anew:
                return True
        return False


def _saved(stage: str) -> dict[Path, tuple[int, set[str]]]:
    """When the lock of each training of a stage was last written, and the names of its saved states and results."""
    found = {}
    for lock in states_of(stage).glob(f"*/{LOCK}"):
        names = {path.name for path in lock.parent.iterdir() if path.name.startswith((STEP, FINISHED))}
        found[lock.parent] = (lock.stat().st_mtime_ns, names)
    return found


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a row, whole, at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
