"""What saving costs, and how soon a training that was stopped takes its next step.

    python benchmarks/saving.py [--preset fashion_mnist] [--repeats 10] [--json FILE]

Builds both trainings of a preset over random images and codes. Times steps and saves in turn; the share is that of
saving in the training's time at the default cadence (`runtime.save_every` and `save_minutes`). Then, for each training,
the time from the start of the trainer to its first step, without a saved state and with one, in turn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from runs import parameters
from timing import in_turn, quartiles, show

from tessera.cli.start.rehearsal import image_stats, prior_task, vqvae_task
from tessera.launch.devices import accelerator, set_threads
from tessera.parameters import Params
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import Task

CLASSES = 10


def tasks(params: Params) -> dict[str, tuple[Task, Any]]:
    """Both trainings, new, with their parameters."""
    torch.manual_seed(0)
    task = vqvae_task(params, image_stats(params))
    prior = prior_task(params, task.vqvae.layout, CLASSES)
    found = {
        "train_vqvae": (task, params.stage1_vqvae.training),
        "train_prior": (prior, params.stage2_prior.chosen.training),
    }
    return found


def saving(stage: str, params: Params, repeats: int) -> dict[str, Any]:
    """Seconds of a step and of a save, and the share of saving."""
    task, training = tasks(params)[stage]
    with StateFolder(stage, "benchmark", exclusive=True) as state:
        trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
        task.model.train()
        trainer.stepper.prepare()

        def step() -> None:
            trainer.stepper.take(
                trainer.progress.step, task.batch(trainer.progress.step, slice(None)), trainer.progress
            )
            trainer.progress.step += 1

        times = in_turn({"step": step, "save": lambda: trainer.saver.save(trainer.progress, trainer._best())}, repeats)
    apart = min(params.runtime.save_every * times["step"]["median"], 60 * (params.runtime.save_minutes or 1e9))
    return times | {"share": times["save"]["median"] / (apart + times["save"]["median"])}


def first_step(stage: str, params: Params, saved: bool) -> float:
    """Seconds from a task to its first step, in a new trainer."""
    task, training = tasks(params)[stage]
    began = time.perf_counter()
    with StateFolder(stage, "benchmark" if saved else "cold", exclusive=True) as state:
        trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
        restored = trainer.saver.restore(trainer.progress)
        assert (restored is not None) == saved
        if not saved:
            task.initialise()
        task.model.train()
        trainer.stepper.prepare()
        trainer.stepper.take(0, task.batch(0, slice(None)), trainer.progress)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fashion_mnist")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    params, found = parameters({}, options.preset), {}
    set_threads(params.runtime.threads)
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for stage in ("train_vqvae", "train_prior"):
            times = saving(stage, params, options.repeats)
            print(f"{stage}: saving takes {times['share']:.2%} of the time")
            show({name: times[name] for name in ("step", "save")})
            starts = {"cold": [], "resumed": []}
            for _ in range(3):
                starts["cold"].append(first_step(stage, params, saved=False))
                starts["resumed"].append(first_step(stage, params, saved=True))
            starts = {name: quartiles(values) for name, values in starts.items()}
            show(starts)
            found[stage] = times | starts
        os.chdir("/")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
