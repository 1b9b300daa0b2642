"""Validation during training: which weights are measured, and which are kept as the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from tessera.distributed import same_on_all_processes
from tessera.errors import UserError
from tessera.training.groups import TrainedGroup
from tessera.training.progress import Progress
from tessera.training.task import NEWEST, Task


@contextmanager
def weights_in(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A context with the model in evaluation mode and some tensors replaced. At its end both are undone."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()} if weights else None
    model.eval()
    model.load_state_dict(weights, strict=False)
    yield
    if kept is not None:
        model.load_state_dict(kept)
    model.train()


@contextmanager
def weights_to_publish(task: Task, groups: Iterable[TrainedGroup]) -> Iterator[None]:
    """The model in evaluation mode as it would be published now: with averaged weights, where there are any."""
    averages = {name: t for group in groups if group.average for name, t in group.average.weights.items()}
    with weights_in(task.model, averages):
        if averages:
            task.re_estimate()
            same_on_all_processes(task.model.state_dict().values())
        yield


def out_of_patience(progress: Progress, criterion: str, patience: int | None) -> bool:
    """Whether a criterion has not improved for `patience` validations; None is endless patience."""
    return patience is not None and progress.choices[criterion].stale >= patience


def improved(metrics: dict[str, float], progress: Progress, patience: int | None) -> set[str]:
    """Count a validation for every criterion that has patience left. Smaller values are better.

    A criterion whose patience has run out is left alone, whatever its value.

    Args:
        metrics: the figures of the validation, by name.
        progress: the best values so far; it is changed.
        patience: a criterion has none left after this many counted validations without improvement. None: no limit.

    Returns:
        the names of the criteria whose value is smaller than all before.

    Raises:
        UserError: the value of a counted criterion is not finite. Nothing has been counted then.
    """
    metrics = {**metrics, NEWEST: float(-progress.step)}
    counted = [name for name in progress.choices if not out_of_patience(progress, name, patience)]
    for name in counted:
        if not math.isfinite(metrics[name]):
            raise UserError(
                f"step {progress.step}: the validation's {name} is {metrics[name]}, so no weights can be chosen by it; "
                "lower learning_rate or set gradient_clip, then run again (a changed value starts anew)"
            )
    return {name for name in counted if progress.choices[name].note(metrics[name], progress.step)}


def best_steps(progress: Progress, groups: list[TrainedGroup]) -> dict[str, int]:
    """The best step of each parameter group, where the groups have more than one criterion; else nothing."""
    if len(progress.choices) == 1:
        return {}
    return {f"best_step_{group.name}": progress.choices[group.settings.criterion].best_step for group in groups}


def copied(model: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of the model's tensors of these names."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in names}
