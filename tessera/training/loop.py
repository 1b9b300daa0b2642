"""The one training loop: steps, cadence, resuming. It knows neither stage; a stage brings a `Task`."""

from __future__ import annotations

import math
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from tessera import paths
from tessera.distributed import largest_over_processes, same_on_all_processes, sum_over_processes, world
from tessera.errors import UserError
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.randomness import seed_of
from tessera.training.checkpoint import StateFolder, fingerprint
from tessera.training.optimizer import WeightAverage, build_optimizer, learning_rate
from tessera.training.resuming import RunWeights
from tessera.training.tracking import Row, write_results

MAX_SKIPPED = 10  # consecutive steps without a finite gradient before the run is given up


class Task(Protocol):
    """What a stage brings to the loop."""

    model: nn.Module  # forward(**batch) -> loss, or (loss, {part's name: scalar tensor})
    not_averaged: frozenset[str]  # parameters that a weight EMA leaves alone: codebooks that `settle` re-estimates

    def start(self) -> None:
        """Data-driven initialisation, before step 0, the same on every process."""

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        """The given rows of the global batch of a step, on the CPU. Called from another thread."""

    def compile(self) -> None:
        """Compile what training runs."""

    def update(self, step: int) -> dict[str, torch.Tensor]:
        """After an optimizer step with finite gradients: codebook statistics, schedules; returns scalars to log."""

    def discard(self) -> None:
        """After a step that was skipped: forget what the forward pass gathered."""

    def settle(self) -> None:
        """With averaged weights in the model: re-estimate what is not averaged."""

    def validate(self) -> dict[str, float]:
        """Figures over the validation split, the same on every process; `criterion` is what is minimised."""


@dataclass
class Progress:
    """Where a run stands; all of it is saved."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    skipped: int = 0
    finished: bool = False
    best_metrics: dict[str, float] = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)


class StopRequest:
    """SIGINT and SIGTERM set a flag; the loop saves its state and leaves at the next step."""

    def __enter__(self) -> StopRequest:
        self.signal: int | None = None
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])  # who asks twice will not wait for the step to end

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device) -> int | None:
        """The signal that any process has received, or None; the same answer everywhere."""
        return largest_over_processes(self.signal or 0, device) or None


class Trainer:
    """One run of a task: holds what changes while it trains. Call `run`."""

    def __init__(
        self, task: Task, params: TrainingParams, runtime: RuntimeParams, accelerator: Accelerator, state: StateFolder
    ) -> None:
        size = accelerator.num_processes
        if params.batch_size % size:
            raise UserError(
                f"training.batch_size: {params.batch_size} is the global batch and must be a multiple of the "
                f"{size} processes; change one of them"
            )
        self.task, self.params, self.runtime, self.accelerator, self.state = task, params, runtime, accelerator, state
        self.device = accelerator.device
        share = params.batch_size // size
        self.rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        memory_format = torch.channels_last if params.channels_last else torch.preserve_format
        task.model.to(self.device, memory_format=memory_format)
        self.optimizer = build_optimizer(task.model, params, task.not_averaged)
        decay = params.weight_ema_decay
        self.average = WeightAverage(task.model, decay, task.not_averaged) if decay else None
        self.weights = RunWeights(task.model, self.optimizer, self.average)
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}

    def run(self) -> Progress:
        """Train to the end, or go on from the last saved state; leave the best weights in the model.

        Raises:
            SystemExit: after SIGINT or SIGTERM, once the state is saved.
            UserError: the gradients stay non-finite.
        """
        if not self._restore():
            self.task.model.train()
            self.task.start()
            same_on_all_processes(self.task.model.state_dict().values())  # each has run the start by itself
        if not self.progress.finished:
            if self.params.compile:
                self.task.compile()
            self._train()
        self.task.model.load_state_dict(self.best)
        self.task.model.eval()
        return self.progress

    def _train(self) -> None:
        model = self.accelerator.prepare_model(self.task.model)
        steps = range(self.progress.step, self.params.steps)
        bar = tqdm(total=self.params.steps, initial=self.progress.step, disable=self._bar_off(), unit="step")
        with StopRequest() as stop, ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.task.batch, self.progress.step, self.rows)
            for step in steps:
                if self._out_of_patience():
                    break
                batch = ahead.result()
                if step + 1 < self.params.steps:
                    ahead = pool.submit(self.task.batch, step + 1, self.rows)
                self._step(model, step, batch)
                self.progress.step = step + 1
                bar.update()
                if (step + 1) % self.params.validate_every == 0 or step + 1 == self.params.steps:
                    self._validate()
                if (number := stop.agreed(self.device)) is not None:
                    self._save()
                    self._say(f"stopped by {signal.Signals(number).name}; the same command goes on from here")
                    raise SystemExit(128 + number)
                if (step + 1) % self.runtime.save_every == 0:
                    self._save()
        bar.close()
        self.progress.finished = True
        self._save()

    def _step(self, model: nn.Module, step: int, batch: dict[str, torch.Tensor]) -> None:
        """One optimizer update; a step whose gradient is not finite changes nothing."""
        torch.manual_seed(seed_of("step", self.params.seed, step, world()[0]))  # dropout, the same after resuming
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        rate = learning_rate(step, self.params)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
            result = model(**batch)
        loss, parts = result if isinstance(result, tuple) else (result, {})
        loss.backward()  # Accelerate's own would divide by an accumulation set in its environment
        # After DDP's reduction the norm is the same on every process, and so is this decision.
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), self.params.gradient_clip or math.inf)
        if torch.isfinite(norm):
            self.optimizer.step()
            parts = {**parts, **self.task.update(step)}
            if self.average:
                self.average.update(step)
            self.progress.skipped = 0
        else:
            self.task.discard()
            self.progress.skipped += 1
            self._say(f"step {step + 1}: the gradient is not finite; the step is skipped")
            if self.progress.skipped >= MAX_SKIPPED:
                raise UserError(
                    f"step {step + 1}: {MAX_SKIPPED} steps in a row without a finite gradient; lower learning_rate, "
                    "or use precision fp32"
                )
        self.optimizer.zero_grad(set_to_none=True)
        if (step + 1) % self.runtime.log_every == 0:
            mean = {"loss": loss, **parts}
            scalars = torch.stack([v.detach().float().reshape(()) for v in mean.values()])
            scalars = (sum_over_processes(scalars) / world()[1]).tolist()
            row = dict(zip(mean, scalars, strict=True)) | {"learning_rate": rate, "grad_norm": norm.item()}
            self.progress.train.append({"step": step + 1, **row})

    def _validate(self) -> None:
        """Judge the weights that would be published (the average, where there is one); keep the best."""
        began, model = time.monotonic(), self.task.model
        model.eval()
        kept = None
        if self.average:
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(self.average.weights, strict=False)
            self.task.settle()
            same_on_all_processes(model.state_dict().values())
        metrics = self.task.validate()
        criterion = metrics.pop("criterion")
        if not math.isfinite(criterion):
            raise UserError(
                f"step {self.progress.step}: the validation criterion is {criterion}, so no weights can be chosen; "
                "lower learning_rate or set gradient_clip, then run again (a changed value starts anew)"
            )
        self.progress.validation.append({"step": self.progress.step, **metrics})
        if criterion < self.progress.best:
            self.progress.best, self.progress.best_step, self.progress.stale = criterion, self.progress.step, 0
            self.progress.best_metrics = metrics
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        else:
            self.progress.stale += 1
        if kept is not None:
            model.load_state_dict(kept)
        model.train()
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._say(f"step {self.progress.step}/{self.params.steps}  {figures}  ({time.monotonic() - began:.1f} s)")

    def _out_of_patience(self) -> bool:
        return self.params.patience is not None and self.progress.stale >= self.params.patience

    def _save(self) -> None:
        if not self.best:  # interrupted before the first validation
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.task.model.state_dict().items()}
        tensors = self.weights.tensors(self.best)
        if self.accelerator.is_main_process:
            self.state.save(self.progress.step, tensors, {"progress": vars(self.progress)})
        self.accelerator.wait_for_everyone()

    def _restore(self) -> bool:
        saved = self.state.latest()
        step = saved[1]["step"] if saved else -1
        if largest_over_processes(step, self.device) != -largest_over_processes(-step, self.device):
            raise UserError(
                f"{self.state.folder}: not every process finds the same saved state; the machines of one run need one "
                "shared working folder, or none of them a saved state"
            )
        if saved is None:
            return False
        tensors, values = saved
        changed = values["progress"].keys() != vars(self.progress).keys()
        if misfit := "the progress" if changed else self.weights.misfit(tensors):
            self._say(
                f"note: {misfit} of the state in {self.state.folder} does not fit the code as it is; starting anew"
            )
            return False
        self.progress = Progress(**values["progress"])
        self.best = self.weights.restore(tensors)
        self.task.model.train()
        self._say(f"going on from step {self.progress.step} ({self.state.folder})")
        return True

    def _bar_off(self) -> bool | None:
        return None if self.accelerator.is_main_process else True  # None: silent when not a terminal

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stderr)


def train(
    stage: str,
    task: Task,
    params: TrainingParams,
    runtime: RuntimeParams,
    accelerator: Accelerator,
    values: dict[str, Any],
    parents: dict[str, str],
) -> dict[str, float]:
    """Run a stage's task, leave the best weights in its model and the curves in results/STAGE.

    Args:
        values, parents: the parameters, as JSON values, and the inputs' identities, by which a saved state is found.

    Returns:
        The validation figures of the weights that were kept, their `step`, and how many `parameters` there are.
    """
    with StateFolder(stage, fingerprint(stage, values, parents), accelerator.is_main_process) as state:
        accelerator.wait_for_everyone()  # the main process may just have cleared what a killed run left half done
        progress = Trainer(task, params, runtime, accelerator, state).run()
    size = sum(parameter.numel() for parameter in task.model.parameters())
    metrics = {**progress.best_metrics, "step": progress.best_step, "parameters": size}
    if accelerator.is_main_process:
        curves = {"train": progress.train, "validation": progress.validation}
        write_results(paths.RESULTS / stage, curves, {"validation": metrics})
    return metrics
