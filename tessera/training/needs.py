"""How much memory and disk a training needs, found out by one forward pass of a few images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessera.footprint import kept_for_backward
from tessera.parameters.training import TrainingParams
from tessera.training.task import Task

IMAGES = 2  # images of the forward pass
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
        """Bytes of memory of a step of so many images. Libraries, and the images themselves, are not counted."""
        return self.fixed + images * self.image


def needs(task: Task, params: TrainingParams) -> Needs:
    """Measure a task. Its model and its data stay as they are.

    Args:
        task: with the model where it will be trained.
        params: how it will be trained.
    """
    model, count = task.model, min(IMAGES, params.batch_size)
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in task.batch(0, slice(0, count)).items()}
    training = model.training
    model.train()
    kept = 0
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name in task.losses:
            with torch.autocast(device.type, torch.bfloat16, enabled=params.precision == "bf16"):
                kept = max(kept, kept_for_backward(model, lambda name=name: task.loss(name, model, batch)))
    task.discard()
    model.train(training)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    copies = 2 * weights + MOMENTS * trained + (trained if params.weight_ema_decay else 0)
    return Needs(fixed=copies + trained, image=kept // count, state=copies)
