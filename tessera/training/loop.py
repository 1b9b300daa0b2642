"""The one training loop: steps, their cadence, saving and going on. It knows no stage; a stage brings a `Task`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator

from tessera import paths
from tessera.console import Bar, say, waiting
from tessera.distributed import largest_over_processes, same_on_all_processes
from tessera.launch.devices import helper
from tessera.launch.precision import slow_bf16
from tessera.locks import note_result
from tessera.parameters.training import RuntimeParams, TrainingParams
from tessera.training.checkpoint import StateFolder, fingerprint
from tessera.training.checks import require_trainable
from tessera.training.groups import build_groups
from tessera.training.needs import require_room
from tessera.training.pictures import Pictures
from tessera.training.progress import Progress
from tessera.training.saving import Artifact, Saver
from tessera.training.steps import Stepper
from tessera.training.stopping import StopRequest, leave
from tessera.training.task import Task
from tessera.training.tracked import Trackers, require_trackers
from tessera.training.tracking import GrowingCurve, line, write_results
from tessera.training.validation import best_steps, copied, improved, weights_in, weights_to_publish


class Trainer:
    """One training of a task. Call `run`."""

    def __init__(
        self,
        task: Task,
        params: TrainingParams,
        runtime: RuntimeParams,
        accelerator: Accelerator,
        state: StateFolder,
        artifact: Artifact | None = None,
        values: dict[str, Any] | None = None,
    ) -> None:
        """Puts the model on the accelerator's device.

        Args:
            state: the run's saved states. Its stage names the folder of results where curves and pictures appear.
            artifact: what is published of it; None: nothing.
            values: the parameters that trackers show, as JSON values.

        Raises:
            UserError: see `require_trainable`; or a tracker is not installed.
        """
        size = accelerator.num_processes
        require_trainable(task, params, runtime, size)
        require_trackers(runtime.trackers)
        self.task, self.params, self.runtime, self.accelerator, self.state = task, params, runtime, accelerator, state
        self.artifact = artifact
        self.device = accelerator.device
        share = params.batch_size // size
        self.rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        task.together = min(share, runtime.micro_batch or share)
        memory_format = torch.channels_last if params.channels_last else torch.preserve_format
        task.model.to(self.device, memory_format=memory_format)
        self.groups = build_groups(task, params)
        self.stepper = Stepper(task, self.groups, params, runtime, accelerator)
        self.saver = Saver(task.model, self.groups, runtime, accelerator, state)
        criteria = dict.fromkeys(group.settings.criterion for group in self.groups)
        self.progress = Progress.of(criteria, [group.name for group in self.groups])
        self.best: dict[str, torch.Tensor] = {}
        results = paths.RESULTS / state.stage
        self.curves = {name: GrowingCurve(results / f"{name}.csv") for name in ("train", "validation")}
        self.pictures = Pictures(state.stage, results / "images", runtime.pictures)
        trackers = runtime.trackers if accelerator.is_main_process else ()
        self.trackers = Trackers(trackers, state.stage, state.folder.name, values or {})

    def run(self) -> Progress:
        """Train to the end, or go on from the last saved state; leave the best weights in the model.

        Raises:
            SystemExit: after a signal that asks to stop, once the state is saved.
            UserError: memory or disk cannot be enough, the gradients stay non-finite, or a validation is not finite.
        """
        restored = self.saver.restore(self.progress)
        self.task.model.train()
        if restored:
            self.progress, self.best = restored
        else:
            with waiting("start from the data"):
                self.task.initialise()
            # Each process has initialised by itself, and some operations may have rounded differently.
            same_on_all_processes(self.task.model.state_dict().values())
        if self.accelerator.is_main_process:
            self.pictures.begin(self.state.folder.name, self.progress.step)
        with self.trackers:
            if not self.progress.finished:
                say(require_room(self.task, self.params, self.runtime, self.task.together, self.state.folder))
                if self.params.compile:
                    self.task.compile()
                self._train()
            self.trackers.end(self.progress.curves(), self.metrics(), self.progress.step)
        self.task.model.load_state_dict(self.best, strict=False)
        self.task.model.eval()
        return self.progress

    def _train(self) -> None:
        if self.params.precision == "bf16" and (slow := slow_bf16(self.device)):
            faster = f"-S {self.task.section}.precision=fp32 -S {self.task.section}.channels_last=false"
            say(f"warning: {slow}; this training may be faster with `dvc exp run {faster}`")
        self.stepper.prepare()
        self._show()
        bar = Bar(self.params.steps, self.state.stage, "step", self.progress.step)
        with bar, StopRequest() as stop:
            self._take_steps(bar, stop)
            self._finish(stop)

    def _take_steps(self, bar: Bar, stop: StopRequest) -> None:
        steps = range(self.progress.step, self.params.steps)
        with helper(self.device) as pool:
            ahead = pool.submit(self.task.batch, self.progress.step, self.rows)
            for step in steps:
                if not any(self.stepper.is_trained(group, self.progress) for group in self.groups):
                    say(f"step {step}: ends here, after {self.params.patience} validations without improvement")
                    break
                batch = ahead.result()
                if step + 1 < self.params.steps:
                    ahead = pool.submit(self.task.batch, step + 1, self.rows)
                compiles = self.params.compile and step == steps.start
                with waiting("compilation") if compiles else nullcontext():
                    agreed = self.stepper.take(
                        step, batch, self.progress, lambda: stop.asked(self.saver.minutes_passed())
                    )
                self.progress.step = step + 1
                if (step + 1) % self.runtime.log_every == 0:
                    self._show()
                    bar.set_postfix_str(self._figures(), refresh=False)
                bar.update()
                if compiles:
                    bar.forget_time()
                ends = False
                if (step + 1) % self.params.validate_every == 0 or step + 1 == self.params.steps:
                    self._validate()
                    bar.set_postfix_str(self._figures(), refresh=False)
                    ends = self._end_requested()
                    agreed = self._asked(stop, self.saver.minutes_passed())  # the validation may have taken minutes
                number, minutes_passed = stop.agreed(agreed, self.saver.minutes_passed())
                if ends:  # even after a signal, with which `_finish` deals: going on later would forget the request
                    break
                if number is not None:
                    self._stop(number)
                self.saver.after_step(self.progress, self._best, minutes_passed)

    def _finish(self, stop: StopRequest) -> None:
        """Measure the best weights where they are of different steps, and save the result.

        Raises:
            SystemExit: after a signal that asks to stop, once the result is saved.
        """
        if len(self.progress.choices) > 1:
            # The best weights of different steps have never been measured together.
            with waiting("validation", report=False), weights_in(self.task.model, self.best):
                self.progress.metrics = self.task.validate()
        self.progress.finished = True
        published = {"training": self.params.after(self.progress.step), "metrics": self.metrics()}
        published |= {"artifact": {**asdict(self.artifact), "part": self.task.part}} if self.artifact else {}
        self.saver.finish(self.progress, self.best, published)
        if number := stop.agreed(self._asked(stop))[0]:
            leave(number, "the training is done, and the same command publishes it")

    def _asked(self, stop: StopRequest, also: bool = False) -> int:
        """The largest of what the processes ask for now, see `StopRequest.asked`. All must call it."""
        return largest_over_processes(stop.asked(also), self.device)

    def metrics(self) -> dict[str, float]:
        """The figures that `train` returns."""
        size = sum(parameter.numel() for parameter in self.task.model.get_submodule(self.task.part).parameters())
        step = max(choice.best_step for choice in self.progress.choices.values())
        steps = {"step": step, **best_steps(self.progress, self.groups), "steps": self.progress.step}
        return {**self.progress.metrics, **steps, "parameters": size}

    def _validate(self) -> None:
        """Measure the weights that would be published now, and keep those that are the best by their criterion."""
        began, model, progress = time.monotonic(), self.task.model, self.progress
        with waiting("validation", report=False), weights_to_publish(self.task, self.groups):
            metrics = self.task.validate()
            best = improved(metrics, progress, self.params.patience)
            for group in self.groups:
                if group.settings.criterion in best:
                    self.best |= copied(model, group.state)
            if self.accelerator.is_main_process:
                self.pictures.draw(self.task, progress.step)
        if best:
            progress.metrics = metrics
        progress.validation.append({"step": progress.step, **metrics, **best_steps(progress, self.groups)})
        self._show()
        seconds = time.monotonic() - began
        say(f"step {progress.step}/{self.params.steps}  {line(metrics)}  (validated in {seconds:.1f} s)")

    def _end_requested(self) -> bool:
        """Whether a user has asked the training to end after this validation; the same answer on every process."""
        asked = self.accelerator.is_main_process and self.state.end_requested()
        if not largest_over_processes(int(asked), self.device):
            return False
        step = self.progress.step
        again = " and ".join(f"{name}: {value}" for name, value in self.params.after(step).items())
        say(f"step {step}: ends here, as `python -m tessera stop` asked; {again} train the same again")
        return True

    def _show(self) -> None:
        """Bring the CSV files and the trackers up to date."""
        if self.accelerator.is_main_process:
            for name, rows in self.progress.curves().items():
                self.curves[name].follow(rows)
            self.trackers.follow(self.progress.curves())

    def _figures(self) -> str:
        """What the progress bar shows: the loss, another figure of the training batch, and the last validation's."""
        row, criterion = (self.progress.train or [{}])[-1], self.task.criterion
        shown = {name: row[name] for name in ("loss", self.task.shown) if name in row}
        if self.progress.validation and criterion in self.progress.validation[-1]:
            shown[f"validation {criterion}"] = self.progress.validation[-1][criterion]
        return ", ".join(f"{name} {value:.4g}" for name, value in shown.items())

    def _best(self) -> dict[str, torch.Tensor]:
        """The best weights. Before the first validation there are none; the present ones stand in their place."""
        missing = [name for group in self.groups for name in group.state if name not in self.best]
        return self.best | copied(self.task.model, missing)

    def _stop(self, number: int) -> None:
        """Save and leave.

        Raises:
            SystemExit: always.
        """
        saved = self.saver.save(self.progress, self._best())
        where = "from here" if saved else "from its last saved state"
        leave(number, f"the same command goes on {where}")


def train(
    stage: str,
    task: Task,
    params: TrainingParams,
    runtime: RuntimeParams,
    accelerator: Accelerator,
    values: dict[str, Any],
    artifact: Artifact,
) -> dict[str, float]:
    """Train a stage's task; leave the best weights in the task's model, and the curves in results/STAGE.

    A training that was interrupted goes on from its saved state: the one of the same `values` and the same parents.

    Args:
        values: the parameters of the stage as JSON values.
        artifact: what the caller will publish.

    Returns:
        Validation figures of the best weights. `step`: the step at which they were reached. `steps`: how many were
        taken, those before an interruption included. `parameters`: the number of weights. Where parameter groups have
        best steps of their own, `step` is the latest of them and `best_step_GROUP` tells each.
    """
    with StateFolder(stage, fingerprint(stage, values, artifact.parents), accelerator.is_main_process) as state:
        # The main process may just have cleared what a killed run left half done.
        accelerator.wait_for_everyone()
        trainer = Trainer(task, params, runtime, accelerator, state, artifact, values)
        progress = trainer.run()
    metrics = trainer.metrics()
    if accelerator.is_main_process:
        write_results(paths.RESULTS / stage, progress.curves(), {"validation": metrics})
        note_result(state.result(progress.step))
    return metrics
