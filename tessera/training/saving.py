"""When a training saves its state, what it saves, and how it goes on from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tessera.console import say
from tessera.distributed import largest_over_processes
from tessera.errors import UserError
from tessera.parameters.training import RuntimeParams
from tessera.training.checkpoint import StateFolder
from tessera.training.groups import TrainedGroup
from tessera.training.progress import Progress
from tessera.training.resuming import RunTensors

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Artifact:
    """What a training publishes: the result in its state holds enough to publish it again (`tessera.cli.states`).

    Attributes:
        kind, config, parents: see `tessera.artifacts.models.save_model`.
    """

    kind: str
    config: dict[str, Any]
    parents: dict[str, str]


class Saver:
    """Saves the states of one training and finds the newest again.

    A state that is not finite is never saved: whoever went on from it would meet the same failure again.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[TrainedGroup],
        runtime: RuntimeParams,
        accelerator: Accelerator,
        state: StateFolder,
    ) -> None:
        self.tensors = RunTensors(model, groups)
        self.runtime, self.accelerator, self.state = runtime, accelerator, state
        self.saved, self.step = time.monotonic(), None
        self._wanted = self._told = False

    @property
    def machine(self) -> dict[str, Any]:
        """What `runtime` and the machine change of a training, by rounding and by what dropout draws."""
        return {
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "device": self.accelerator.device.type,
            "micro_batch": self.runtime.micro_batch,
        }

    def minutes_passed(self) -> bool:
        """Whether `runtime.save_minutes` have passed since the last state. Only the process that saves says so."""
        minutes = self.runtime.save_minutes
        return self.state.exclusive and minutes is not None and time.monotonic() - self.saved >= 60 * minutes

    def after_step(self, progress: Progress, best: Callable[[], Tensors], minutes_passed: bool) -> None:
        """Save a state if it is time for one.

        While updates are skipped because gradients are not finite, no state is saved. The newest state is thus from
        before the failure. After the code is corrected, the training continues from it.

        Args:
            best: gives the best weights so far.
            minutes_passed: the same on every process.
        """
        self._wanted |= minutes_passed or progress.step % self.runtime.save_every == 0
        if self._wanted and not any(progress.skipped.values()):
            self.save(progress, best())

    def save(self, progress: Progress, best: Tensors) -> bool:
        """Save a state, unless it is not finite.

        Returns:
            Whether it was saved. Only the process that saves can tell.
        """
        self._wanted, self.saved = False, time.monotonic()
        saved = self.state.exclusive and self._save(progress, self.tensors.tensors(best))
        self.accelerator.wait_for_everyone()
        return saved

    def _save(self, progress: Progress, tensors: Tensors) -> bool:
        if bad := self.tensors.not_finite(tensors):
            if not self._told:
                say(f"warning: step {progress.step}: {bad} is not finite, so no state is saved; {self._last()}")
            self._told = True
            return False
        values = {"progress": progress.to_json(), "machine": self.machine}
        self.state.save(progress.step, tensors, values, self.runtime.keep_states)
        self.step, self._told = progress.step, False
        return True

    def _last(self) -> str:
        return "there is none yet" if self.step is None else f"that of step {self.step} stays"

    def finish(self, progress: Progress, best: Tensors, values: dict[str, Any]) -> None:
        """Save the result, from which it can be published without training again.

        Args:
            progress: of the training, which has ended.
            best: the weights that are published.
            values: what publishing needs besides the weights, as JSON values.

        Raises:
            UserError: the best weights have NaN or infinite values. Nothing is saved then.
        """
        tensors = self.tensors.result(best)
        if bad := self.tensors.not_finite(tensors):
            raise UserError(
                f"step {progress.step}: {bad} is not finite, so nothing is published; lower learning_rate, use "
                f"precision fp32, or mend the data or the code, then run again; of the saved states, {self._last()}"
            )
        if self.state.exclusive:
            values = {"progress": progress.to_json(), "machine": self.machine, **values}
            self.state.finish(progress.step, tensors, values, self.runtime.keep_states)
        self.accelerator.wait_for_everyone()

    def restore(self, progress: Progress) -> tuple[Progress, Tensors] | None:
        """Put the newest saved state into the model, or return None if there is none.

        Args:
            progress: that of a training that has not begun.

        Returns:
            The progress, and the best weights so far.

        Raises:
            UserError: the processes find different states, or the newest one does not fit the code as it is.
        """
        saved = self.state.latest()
        step = saved[1]["step"] if saved else -1
        device, folder = self.accelerator.device, self.state.folder
        if largest_over_processes(step, device) != -largest_over_processes(-step, device):
            raise UserError(
                f"{folder}: not every process finds the same saved state; the machines of one run need one shared "
                "working folder, or none of them a saved state"
            )
        if saved is None:
            return None
        tensors, values = saved
        found = progress.read(values["progress"])
        if misfit := "the progress" if found is None else self.tensors.misfit(tensors, found.finished):
            # The whole folder may hold results of other code too, which stay.
            names = " ".join("/".join(path.parts[-3:]) for path in self.state.usable())
            raise UserError(
                f"{folder}: {misfit} of its state of step {step} does not fit the code as it is; undo the edit to "
                f"go on with it, or begin anew: `python -m tessera states --delete {names}`, and run again"
            )
        if not found.finished:
            self._warn_of_another_machine(values.get("machine"))
        self.step = found.step
        best = self.tensors.restore(tensors)
        say(f"going on from step {found.step} ({folder})")
        return found, best

    def _warn_of_another_machine(self, before: dict[str, Any] | None) -> None:
        if before is None or before == self.machine:
            return

        def described(machine: dict[str, Any]) -> str:
            return ", ".join(f"{name} {value}" for name, value in machine.items())

        say(
            f"warning: the saved state was made with {described(before)}, and goes on with {described(self.machine)}; "
            "the end is that of neither, by rounding, and with other processes or micro-batches also by what dropout "
            "draws"
        )
