"""One step of a training: every loss, the updates of its parameter groups, and a row of train.csv."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from tessera.console import say
from tessera.distributed import largest_of_each, largest_over_processes, sum_over_processes, world
from tessera.errors import UserError
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.randomness import seed_of
from tessera.training.groups import TrainedGroup, frozen
from tessera.training.optimizer import learning_rate
from tessera.training.progress import Progress
from tessera.training.task import Batch, Task
from tessera.training.validation import out_of_patience

MAX_SKIPPED = 10  # the training is given up after so many skipped updates of a parameter group in a row


class Stepper:
    """Takes the steps of a training."""

    def __init__(
        self,
        task: Task,
        groups: list[TrainedGroup],
        params: TrainingParams,
        runtime: RuntimeParams,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.groups, self.params, self.runtime = task, groups, params, runtime
        self.accelerator, self.device = accelerator, accelerator.device
        self.models: dict[str, nn.Module] = dict.fromkeys(task.losses, task.model)

    def prepare(self) -> None:
        """Wrap the model for several processes, once for each loss.

        A wrapper waits for the gradients of all parameters that need one while it is made. These are the parameters
        of its own loss alone.
        """
        for name in self.task.losses:
            with frozen(self._others(name)):
                self.models[name] = self.accelerator.prepare_model(self.task.model)

    def take(self, step: int, batch: Batch, progress: Progress, asked: Callable[[], int] = int) -> int:
        """Compute every loss in turn, and update the parameter groups of each by its gradient.

        An update is skipped if the group's gradient is not finite. A step waits for the device to learn this, and
        for a row of train.csv if it writes one. One exchange tells all processes whether gradients are finite, and what
        each process asks for (`asked`).

        Args:
            step: counted from 0.
            batch: this process's rows, on any device.
            progress: receives a row of train.csv and the numbers of skipped updates.
            asked: tells what this process asks all processes for (`tessera.training.stopping`). It is called as late as
                it can be, when the first loss has its gradient.

        Returns:
            The largest of what the processes asked for.

        Raises:
            UserError: a parameter group was not updated for `MAX_SKIPPED` steps in a row.
        """
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        rate = learning_rate(step, self.params)
        self.task.begin(step)
        losses: dict[str, torch.Tensor] = {}
        parts: dict[str, torch.Tensor] = {}
        norms: dict[str, torch.Tensor] = {}
        finite: dict[str, bool] = {}
        agreed: int | None = None
        for name in self.task.losses:
            groups = [group for group in self._groups_of(name) if self.is_trained(group, progress)]
            if not groups or not self.task.active(name):
                continue
            losses[name], more = self._backward(name, step, batch)
            parts |= more
            clipped = {group.name: group.clip() for group in groups}
            norms |= clipped
            # The norms are the same on every process. Only the first loss of a step has anything to exchange.
            looked, agreed = self._look(clipped, asked) if agreed is None else (self._look(clipped)[0], agreed)
            finite |= looked
            for group in groups:
                if finite[group.name]:
                    group.step(rate)
        if all(finite.values()):
            parts |= self.task.update(step)
        else:
            self.task.discard()
        for group in self.groups:
            if group.average and finite.get(group.name):
                group.average.update(step)
            group.forget_gradients()
        self._count_skipped(step, finite, progress)
        if (step + 1) % self.runtime.log_every == 0:
            row = self._means(losses, parts) | {"learning_rate": rate} | self._norms(norms)
            progress.train.append({"step": step + 1, **row})
        return largest_over_processes(asked(), self.device) if agreed is None else agreed

    def _look(
        self, norms: dict[str, torch.Tensor], asked: Callable[[], int] | None = None
    ) -> tuple[dict[str, bool], int | None]:
        """Whether each norm is finite; and the largest of what the processes ask for, unless that is None."""
        bad = torch.stack([~norm.isfinite() for norm in norms.values()]).long()
        found, agreed = bad.tolist() if asked is None else [], None
        if asked is not None:
            *found, agreed = largest_of_each(torch.cat([bad, bad.new_tensor([asked()])]))
        return dict(zip(norms, (not value for value in found), strict=True)), agreed

    def is_trained(self, group: TrainedGroup, progress: Progress) -> bool:
        """Whether a group still has patience."""
        return not out_of_patience(progress, group.settings.criterion, self.params.patience)

    def _groups_of(self, loss: str) -> list[TrainedGroup]:
        """The parameter groups of one loss."""
        return [group for group in self.groups if group.settings.loss == loss]

    def _others(self, loss: str) -> list[TrainedGroup]:
        """The parameter groups of all losses but one."""
        return [group for group in self.groups if group.settings.loss != loss]

    def _backward(self, name: str, step: int, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute a loss and its gradient on its own parameter groups; returns the loss and the scalars beside it.

        A loss is a mean over images, so that micro-batches give the loss and the gradient of the whole batch.
        """
        count = len(next(iter(batch.values())))
        pieces = micro_batches(count, self.runtime.micro_batch)
        loss, parts = torch.zeros((), device=self.device), dict[str, torch.Tensor]()
        for number, rows in enumerate(pieces):
            piece = batch if len(pieces) == 1 else {key: tensor[rows] for key, tensor in batch.items()}
            # The gradients of several processes are added up once, with the last piece.
            waits = nullcontext() if number + 1 == len(pieces) else self.accelerator.no_sync(self.models[name])
            with frozen(self._others(name)), waits:
                own, scalars = self._forward(name, step, number, piece)
                share = (rows.stop - rows.start) / count
                # Accelerate's own `backward` would divide by an accumulation that is set in its environment.
                (own * share).backward()
            loss = loss + own.detach() * share
            parts = {key: parts.get(key, 0) + scalar.detach() * share for key, scalar in scalars.items()}
        return loss, parts

    def _forward(self, name: str, step: int, number: int, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A loss of the micro-batch with this number, and the scalars beside it."""
        # Dropout and other randomness of the forward pass is the same after resuming, whatever was drawn before.
        key = () if name == "loss" else (name,)
        key += (number,) if number else ()
        torch.manual_seed(seed_of("step", self.params.seed, step, world()[0], *key))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
            result = self.task.loss(name, self.models[name], batch)
        return result if isinstance(result, tuple) else (result, {})

    def _count_skipped(self, step: int, finite: dict[str, bool], progress: Progress) -> None:
        """Report skipped updates. A group that is not trained any more has none.

        Raises:
            UserError: a parameter group was not updated for `MAX_SKIPPED` steps in a row.
        """
        progress.skipped |= dict.fromkeys(progress.skipped.keys() - finite.keys(), 0)
        for name, updated in finite.items():
            where = f" of {name}" if len(self.groups) > 1 else ""
            progress.skipped[name] = 0 if updated else progress.skipped[name] + 1
            if not updated:
                say(f"step {step + 1}: the gradient{where} is not finite; the update is skipped")
            if progress.skipped[name] >= MAX_SKIPPED:
                raise UserError(
                    f"step {step + 1}: {MAX_SKIPPED} steps in a row without a finite gradient{where}; lower "
                    "learning_rate, or use precision fp32"
                )

    def _means(self, losses: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """Means over processes of losses and parts; before them the `loss`, the weighted mean of several losses."""
        scalars = {**losses, **parts}
        means = torch.stack([scalar.detach().float().reshape(()) for scalar in scalars.values()])
        means = dict(zip(scalars, (sum_over_processes(means) / world()[1]).tolist(), strict=True))
        if "loss" in losses:
            return means
        weights = {name: self.task.losses[name] for name in losses}
        total = sum(weight * means[name] for name, weight in weights.items())
        return {"loss": total / sum(weights.values())} | means

    def _norms(self, norms: dict[str, torch.Tensor]) -> dict[str, float]:
        """The gradient norms of the parameter groups, before they were clipped."""
        several = len(self.groups) > 1
        return {f"grad_norm_{name}" if several else "grad_norm": norm.item() for name, norm in norms.items()}


def micro_batches(count: int, most: int | None) -> list[slice]:
    """Slices that divide `count` rows into pieces of `most` rows; the last may be smaller. None: a single piece."""
    size = most or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
