"""How much memory and disk a training needs, found out by one forward pass of a few images, against what is free."""

from __future__ import annotations

import os
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from tessera.errors import UserError
from tessera.footprint import kept_for_backward
from tessera.launch.memory import free_bytes
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.training.running import STEP
from tessera.training.task import Task

IMAGES = 2  # images of the forward pass
MEGABYTE = 1e6
MOMENTS = 2  # tensors that AdamW keeps for each weight


@dataclass(frozen=True)
class Needs:
    """What one process of a training needs, in bytes.

    Attributes:
        fixed: the weights, their gradients, the optimizer's moments, the best weights and the average.
        image: what the forward pass of one image keeps for the backward pass.
        state: one saved state on disk.
    """

    fixed: int
    image: int
    state: int

    def memory(self, images: int) -> int:
        """Bytes of memory that a step of `images` images takes, without the libraries and the images themselves."""
        return self.fixed + images * self.image


def needs(task: Task, params: TrainingParams) -> Needs:
    """Measure a task. Its model and its data stay as they are.

    Args:
        task: with the model where it will be trained.
        params: how it will be trained.
    """
    count = min(IMAGES, params.batch_size)
    last = params.steps - 1  # in which every loss has begun
    task.begin(last)
    model = deepcopy(task.model).train()  # a forward pass may change buffers
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in task.batch(last, slice(0, count)).items()}
    kept = 0
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name in task.losses:
            with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
                kept = max(kept, kept_for_backward(model, lambda name=name: task.loss(name, model, batch)))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    copies = 2 * weights + MOMENTS * trained + (trained if params.weight_ema_decay else 0)
    return Needs(fixed=copies + trained, image=kept // count, state=copies)


def require_room(task: Task, params: TrainingParams, runtime: RuntimeParams, images: int, folder: Path) -> str:
    """Refuse a training for which memory or disk cannot be enough. Returns a line that says what it will use.

    Args:
        images: the number of images in one step of this process.
        folder: where its states are saved.

    Raises:
        UserError: with what is needed, what is free, and the parameter that helps.
    """
    wanted, device = needs(task, params), next(task.model.parameters()).device
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    memory, free = sharing * wanted.memory(images), free_bytes(device)
    disk, room = (runtime.keep_states + 1) * wanted.state, free_disk(folder)
    more = max(disk - saved_bytes(folder), wanted.state)  # a training that goes on holds some of it already
    # A compiled step keeps less, by how much is not known.
    if memory > free and not params.compile:
        raise UserError(
            f"{task.section}.batch_size: {params.batch_size}: a step takes about {memory / MEGABYTE:,.0f} MB of memory "
            f"({sharing * wanted.fixed / MEGABYTE:,.0f} MB for the model), and {free / MEGABYTE:,.0f} MB are free; "
            + ("lower it" if task.whole_batch else f"set runtime.micro_batch below {images}")
        )
    if more > room:
        raise UserError(
            f"{folder}: {runtime.keep_states} saved states and a new one take {disk / MEGABYTE:,.0f} MB of disk, "
            f"{more / MEGABYTE:,.0f} MB more than now, and {room / MEGABYTE:,.0f} MB are free; make room"
            + (", or lower runtime.keep_states" if runtime.keep_states > 2 else "")
        )
    return (
        f"expects about {memory / MEGABYTE:,.0f} MB of memory besides the libraries, and {disk / MEGABYTE:,.0f} MB of "
        "disk for saved states"
    )


def free_disk(folder: Path) -> int:
    """Bytes of free disk where a folder is, or will be: on one of several machines it may not be there."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def saved_bytes(folder: Path) -> int:
    """Bytes of the states that are saved in a folder."""
    return sum(file.stat().st_size for file in folder.glob(f"{STEP}*/*"))
