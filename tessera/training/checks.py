"""What refuses a training before it begins, for the training itself and for the commands that look ahead.

It imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tessera.parameters import Params
    from tessera.parameters.training import RuntimeParams, TrainingParams
    from tessera.training.task import Task

MOST_ROWS = 10**6  # of train.csv


def require_trainable(task: Task, params: TrainingParams, runtime: RuntimeParams, processes: int) -> None:
    """Check that a task can be trained with these parameters by so many processes.

    Raises:
        UserError: one line with all that `task_faults` finds.
    """
    if faults := list(task_faults(task, params, runtime, processes)):
        raise UserError("; ".join(faults))


def task_faults(task: Task, params: TrainingParams, runtime: RuntimeParams, processes: int) -> Iterator[str]:
    """What refuses the training of a task, a message for each fault.

    The global batch cannot be divided equally among the processes, train.csv would have too many rows, or the loss has
    no micro-batches.
    """
    yield from _faults(task.section, params, runtime, processes)
    if runtime.micro_batch and task.whole_batch:
        yield (
            f"runtime.micro_batch: {runtime.micro_batch}: {task.whole_batch}; or set micro_batch to null and lower "
            f"{task.section}.batch_size"
        )


def require_trainings(params: Params) -> None:
    """Check the global batches and the rows of train.csv of all trainings that params.yaml makes certain.

    The classifier is left out, because it is trained only if the images have labels and are large enough. Where
    `runtime.processes` is null, batches are not checked, because GPUs are not counted here.

    Raises:
        UserError: one line with the faults of all trainings.
    """
    processes, faults, certain = params.runtime.processes or 1, [], params.trainings()
    certain.pop("classifier.training", None)
    if not params.stage2_prior.chosen.learns():  # a chain has the section even if no link is trained
        certain.pop("stage2_prior.training", None)
    for section, training in certain.items():
        faults += _faults(section, training, params.runtime, processes)
    if faults:
        raise UserError("; ".join(faults))


def _faults(section: str, params: TrainingParams, runtime: RuntimeParams, processes: int) -> Iterator[str]:
    """What refuses a training whatever its task is, a message for each fault."""
    if params.batch_size % processes:
        yield (
            f"{section}.batch_size: {params.batch_size} is the global batch and must be a multiple of the "
            f"{processes} processes; change one of them"
        )
    if (rows := params.steps // runtime.log_every) > MOST_ROWS:
        yield (
            f"runtime.log_every: {runtime.log_every}: with {section}.steps, train.csv would have {rows:,} rows, all of "
            f"which every saved state holds, and {MOST_ROWS:,} are the most; raise log_every"
        )


def require_initial_folders(params: Params) -> None:
    """Check that there is a folder wherever a training begins with the weights of a published model.

    Raises:
        UserError: there is none.
    """
    for section, training in params.trainings().items():
        folder = getattr(training, "initialise_from", None)
        if folder and not Path(folder).is_dir():
            raise UserError(
                f"{section}.initialise_from: {folder!r}: no such folder; name one with a published model, or set it to "
                "null"
            )
