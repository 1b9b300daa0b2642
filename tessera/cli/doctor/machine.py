"""The machine against what the parameters will need: devices, bf16, compilation, memory and disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from tessera import paths
from tessera.artifacts.datasets import described
from tessera.artifacts.manifests import open_manifest
from tessera.cli.doctor.finding import Finding, Level
from tessera.cli.start import machine as machines
from tessera.cli.start.disk import run_bytes
from tessera.cli.start.rehearsal import classifier_task, decoder_task, image_stats, prior_task, vqvae_task
from tessera.errors import UserError
from tessera.images.prepared import Stats
from tessera.launch.memory import free_bytes
from tessera.launch.processes import number_of_processes
from tessera.parameters import Params
from tessera.parameters.training import TrainingParams
from tessera.training.checks import task_faults
from tessera.training.needs import needs
from tessera.training.task import Task

GIGABYTE = 1e9
LIBRARIES = 1.0e9  # bytes of memory that Python and the libraries take in each process, about


def look(params: Params) -> Iterator[Finding]:
    """All that depends on the machine."""
    found = machines.look(params.runtime.threads)
    try:
        processes = number_of_processes(params.runtime.processes)
    except UserError as error:
        yield Finding(Level.ERROR, "devices", str(error))
        return
    where = found.gpu or "no GPU"
    yield Finding(Level.OK, "devices", f"{where}; {processes} process(es) of {found.threads} threads")
    yield from _speed(params.trainings(), found)
    try:
        stats = described(open_manifest(paths.PREPARED, "prepared"), "stats.json", Stats.from_json)
    except UserError:
        stats = image_stats(params)  # `prepare` has not run: classes and the number of images are not known
    try:
        yield from _room(params, stats, found.device, processes)
    except UserError as error:
        yield Finding(Level.ERROR, "weights", str(error))


def _speed(sections: dict[str, TrainingParams], found: machines.Machine) -> Iterator[Finding]:
    """What makes a training slow, or impossible, on this machine.

    Args:
        sections: the training sections, by dotted path.
    """
    low = [name for name, training in sections.items() if training.precision == "bf16"]
    if low and found.slow_bf16:
        mend = " ".join(f"-S {name}.precision=fp32" for name in low)
        yield Finding(Level.WARNING, "bf16", f"{found.slow_bf16}; `dvc exp run {mend}`")
    compiled = [name for name, training in sections.items() if training.compile]
    if compiled and not found.compiler:
        mend = " ".join(f"-S {name}.compile=false" for name in compiled)
        missing = "torch.compile finds no compiler (C++ for a CPU, C for a GPU)"
        yield Finding(Level.ERROR, "compile", f"{missing}; install one, or {mend}")


def _tasks(params: Params, stats: Stats) -> Iterator[tuple[str, Task, TrainingParams]]:
    """Each training over random images: its stage, its task and its parameters.

    Raises:
        UserError: the weights of a feature network are missing.
    """
    task = vqvae_task(params, stats)
    yield "train_vqvae", task, params.stage1_vqvae.training
    if params.refine_decoder.name != "none":
        yield "refine_decoder", decoder_task(params, task), params.refine_decoder.training
    if params.stage2_prior.chosen.learns():
        prior = prior_task(params, task.vqvae.layout, stats.num_classes)
        yield "train_prior", prior, params.stage2_prior.chosen.training
    if stats.num_classes and params.classifier.name != "none":
        classifier = classifier_task(params, stats, stats.num_classes)
        yield "train_classifier", classifier, params.classifier.chosen.training


def _room(params: Params, stats: Stats, device: torch.device, processes: int) -> Iterator[Finding]:
    """What refuses a training; and memory of each, and disk for the whole run, against what is free.

    Raises:
        UserError: see `_tasks`.
    """
    free, weights = free_bytes(device), 0
    for stage, task, training in _tasks(params, stats):
        for fault in task_faults(task, training, params.runtime, processes):
            yield Finding(Level.ERROR, "training", fault)
        task.model.to(device)
        share = -(-training.batch_size // processes)
        images = min(share, params.runtime.micro_batch or share)
        wanted = needs(task, training).memory(images)
        weights += sum(parameter.numel() for parameter in task.model.parameters())
        shared = 1 if device.type == "cuda" else processes
        wanted = shared * (wanted + (0 if device.type == "cuda" else LIBRARIES))
        text = f"{stage} takes about {wanted / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB are free"
        if wanted > free:
            lower = "" if task.whole_batch else f", or set runtime.micro_batch below {images}"
            compiled = "; a compiled step takes less, by how much is not known" if training.compile else ""
            level = Level.WARNING if compiled else Level.ERROR  # as `require_room` refuses the training, or does not
            yield Finding(level, "memory", f"{text}{compiled}; lower {task.section}.batch_size{lower}")
        else:
            yield Finding(Level.OK, "memory", text)
    if not stats.images:
        room = shutil.disk_usage(Path.cwd()).free
        yield Finding(Level.OK, "disk", f"{room / GIGABYTE:.1f} GB free; what a run needs is known after `prepare`")
        return
    yield from disks(run_bytes(params, stats.images, params.sampling.images, weights))


def disks(wanted: dict[Path, int]) -> Iterator[Finding]:
    """What a run leaves on each disk, against what is free there. Each folder may be on a disk of its own.

    Volumes that share their free space, as those of Btrfs do, are judged as if each had it alone.

    Args:
        wanted: bytes by folder. A folder that does not exist yet will be on the disk of the one around it.
    """
    on: dict[int, dict[Path, Path]] = {}
    for folder in wanted:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        on.setdefault(there.stat().st_dev, {})[folder] = there
    for folders in on.values():
        taken, free = sum(wanted[folder] for folder in folders), shutil.disk_usage(next(iter(folders.values()))).free
        what = "a run takes" if len(on) == 1 else f"{', '.join(map(str, folders))}: a run takes"
        text = f"{what} about {taken / GIGABYTE:.2f} GB, {free / GIGABYTE:.1f} GB are free"
        yield Finding(Level.ERROR if taken > free else Level.OK, "disk", text)
