"""Parameter groups in training: the optimizer, the gradient's limit and the weight average of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tessera.parameters.training import TrainingParams
from tessera.training.optimizer import WeightAverage, build_optimizer
from tessera.training.task import ParameterGroup, Task


def _owner(name: str, groups: Iterable[ParameterGroup]) -> ParameterGroup | None:
    """The group that a parameter or buffer belongs to, or None."""
    around = [group for group in groups if not group.module or name.startswith(f"{group.module}.")]
    return max(around, key=lambda group: len(group.module), default=None)


class TrainedGroup:
    """A parameter group with its optimizer.

    Attributes:
        settings: what the task says of the group.
        parameters: those that are trained, by name, in the model's order.
        state: names of all its parameters and buffers.
        average: the moving average of its weights, or None.
    """

    def __init__(
        self, settings: ParameterGroup, model: nn.Module, state: list[str], params: TrainingParams, task: Task
    ) -> None:
        self.settings, self.state = settings, frozenset(state)
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.parameters = {name: parameter for name, parameter in named.items() if name in self.state}
        self.optimizer = build_optimizer(self.parameters, params, task.re_estimated, settings)
        limit = params.gradient_clip if settings.gradient_clip is None else settings.gradient_clip
        self.gradient_clip = math.inf if limit is None else limit
        averaged = {name: p for name, p in self.parameters.items() if name not in task.re_estimated}
        decay = params.weight_ema_decay
        self.average = WeightAverage(averaged, decay) if decay and averaged and settings.averaged else None

    @property
    def name(self) -> str:
        return self.settings.name

    def clip(self) -> torch.Tensor:
        """Limit the norm of the gradients to `gradient_clip`; returns the norm before, a scalar on their device."""
        # The gradients are already averaged over processes, so that the norm is the same on every one.
        return nn.utils.clip_grad_norm_(list(self.parameters.values()), self.gradient_clip)

    def step(self, learning_rate: float) -> None:
        """Update the parameters by their gradients.

        Args:
            learning_rate: the scheduled one; the group's factor is applied to it.
        """
        for part in self.optimizer.param_groups:
            part["lr"] = learning_rate * self.settings.learning_rate_factor
        self.optimizer.step()

    def forget_gradients(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)


def build_groups(task: Task, params: TrainingParams) -> list[TrainedGroup]:
    """A task's parameter groups with their optimizers, over the model where it lies.

    Raises:
        ValueError: two groups have one name, a group names a loss that the task lacks, a loss has no group, or a
            parameter that needs a gradient belongs to no group.
    """
    groups, model = task.groups(), task.model
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise ValueError(f"{type(task).__name__}: two parameter groups have one name, {sorted(names)}")
    if {group.loss for group in groups} != set(task.losses):
        raise ValueError(
            f"{type(task).__name__}: the losses are {sorted(task.losses)}, but the parameter groups name "
            f"{sorted({group.loss for group in groups})}"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _owner(name, groups) is None:
            raise ValueError(f"{type(task).__name__}: the parameter {name} belongs to no parameter group")
    owners = {name: _owner(name, groups) for name in model.state_dict()}
    return [
        TrainedGroup(group, model, [name for name, owner in owners.items() if owner is group], params, task)
        for group in groups
    ]


@contextmanager
def frozen(groups: Iterable[TrainedGroup]) -> Iterator[None]:
    """No parameter of these groups needs a gradient while this is entered."""
    parameters = [parameter for group in groups for parameter in group.parameters.values()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
