"""What a stage brings to the training loop: a task, and the groups of its model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from tessera.footprint import TOGETHER

Batch = dict[str, torch.Tensor]
NEWEST = "newest"  # in place of a criterion
Loss = torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]  # a scalar, or it with named scalars to log


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the gradient of one loss updates, with optimizer settings and best weights of their own.

    A setting that is None has the value of the training section in params.yaml.

    Attributes:
        criterion: the figure of `Task.validate` whose smallest value chooses the group's best weights. It also decides
            when the group runs out of patience. Groups with the same criterion are chosen and stopped together.
            `NEWEST` is no figure: the weights of the last validation are taken, and patience never runs out.
        name: what messages and the columns of the CSV files call the group.
        module: dotted path of the submodule whose parameters and buffers belong to the group; "" is the whole model.
            A parameter that lies in the modules of several groups belongs to the group of the innermost module.
        loss: the name of the loss, one of `Task.losses`.
        learning_rate_factor: multiplies the scheduled learning rate.
        betas: AdamW's beta1 and beta2.
        weight_decay: AdamW's weight decay of matrices; vectors have none.
        gradient_clip: the largest norm of the group's gradient; infinity for no limit.
        averaged: whether the group has the moving average of weights that the training section may ask for.
    """

    criterion: str
    name: str = "model"
    module: str = ""
    loss: str = "loss"
    learning_rate_factor: float = 1.0
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    gradient_clip: float | None = None
    averaged: bool = True


class Task:
    """What is trained: a model, its batches, its losses, its parameter groups and its validation.

    A subclass sets `model`, `section` and `criterion`, and defines `batch` and `validate`. All else has a default.

    Attributes:
        model: whatever is trained must be computed by its `forward`, or several processes would not share gradients.
        part: dotted path of the submodule of `model` that is published; "" is the whole model.
        section: where the training's parameters stand in params.yaml, for messages.
        criterion: the figure of `validate` whose smallest value chooses the best weights.
        shown: a value of train.csv that the progress bar shows beside the loss; "" for none.
        losses: the name of each loss, in the order in which a step computes them. The numbers are the weights by which
            the losses of a step are averaged in the column `loss` of train.csv; they do not change the training.
        re_estimated: names of parameters that are re-estimated from data (`re_estimate`) wherever other weights are
            averaged. They have no weight decay.
        whole_batch: why a loss is of the batch as a whole, and no mean over its images, so that micro-batches are
            refused; "" if every loss is such a mean.
        together: images that `validate` handles at once in each process. The trainer sets it to as many as a training
            step handles at once.
    """

    model: nn.Module
    part: str = ""
    section: str
    criterion: str
    shown: str = ""
    losses: Mapping[str, float] = MappingProxyType({"loss": 1.0})
    re_estimated: frozenset[str] = frozenset()
    whole_batch: str = ""
    together: int = TOGETHER

    def groups(self) -> tuple[ParameterGroup, ...]:
        """The groups of parameters, which together hold everything that is trained. Default: one for the model."""
        return (ParameterGroup(self.criterion),)

    def initialise(self) -> None:
        """Initialise from data before the first step, the same on every process. Default: nothing."""

    def compile(self) -> None:
        """Compile what training runs. Default: the model's `forward`."""
        self.model.compile()

    def batch(self, step: int, rows: slice) -> Batch:
        """The given rows of a step's global batch, on the CPU. It is called from another thread."""
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Learn which step the losses that follow are of, counted from 0. Default: it makes no difference."""

    def active(self, name: str) -> bool:
        """Whether the step that has begun computes a loss; otherwise its groups stay as they are. Default: always."""
        return True

    def loss(self, name: str, model: nn.Module, batch: Batch) -> Loss:
        """Compute a loss. Default: `model(**batch)`.

        Only the parameters of this loss's groups get a gradient: all others are frozen during the call.

        Args:
            name: one of `losses`.
            model: the task's model, or what wraps it for several processes.
            batch: as `batch` returned it, on the model's device.
        """
        return model(**batch)

    def update(self, step: int) -> dict[str, torch.Tensor]:
        """Update what gradients do not, after a step whose gradients were all finite. Default: nothing.

        Returns:
            Scalars to log.
        """
        return {}

    def discard(self) -> None:
        """Drop what `forward` gathered for `update`, after a step with a gradient that is not finite."""

    def re_estimate(self) -> None:
        """Re-estimate the `re_estimated` parameters while the model holds averaged weights. Default: nothing."""

    def validate(self) -> dict[str, float]:
        """Figures over the validation split, the same on every process; one is the `criterion`."""
        raise NotImplementedError
