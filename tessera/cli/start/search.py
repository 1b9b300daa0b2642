"""Finds the parameters: rules first, then the largest images and the widest network for which the time is enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stage0_images.columns import Source
from stage0_images.pixels import BadImage, decoding, read_image
from stage0_images.sources import open_source
from stage0_images.survey import Survey, look
from tessera import paths
from tessera.artifacts.publishing import scratch
from tessera.cli.preset import DEFAULT, PRESETS, patch, read_changes
from tessera.cli.start import machine as machines
from tessera.cli.start import rules
from tessera.cli.start.machine import Machine
from tessera.cli.start.plan import USED, Plan
from tessera.cli.start.rehearsal import image_stats, vqvae_task
from tessera.cli.start.report import report, write
from tessera.cli.start.rules import FEW, STAGE2, Choice
from tessera.cli.start.timing import measure, prior_step, step_seconds
from tessera.console import waiting
from tessera.launch.cores import available_cores
from tessera.launch.devices import configure_torch
from tessera.launch.processes import number_of_processes
from tessera.parameters import Params, read_yaml, validate

ENOUGH, ENOUGH_FOR_FEW = 1500, 700  # steps of stage 1
# Steps of the prior below which smaller batches are tried: an assumption, since trials had at most 400 steps of 128.
ENOUGH_FOR_PRIOR = 1000
WORTH_HALVING = 1.5  # times faster: what a step must gain by a batch of half the size
STAGE1_PART = 0.35  # of the time: about what stage 1 has
READ = 20  # images that are read to see how long it takes


def search(source: str, minutes: float, side: int | None, file: Path, runtime: dict[str, Any]) -> str:
    """Choose, write `file`, and return what to print.

    Args:
        source: `data.source`.
        side: pixels a side, or None for what the images and the time allow.
        file: the parameter file.
        runtime: the section `runtime` that it has, by dotted path.

    Raises:
        UserError: the source cannot be opened, or no parameters fit it.
    """
    threads = runtime.get("runtime.threads")
    configure_torch(threads)
    machine = machines.look(threads, number_of_processes(runtime.get("runtime.processes")))
    first = Choice({**runtime, **read_changes([f"data.source={source}"])})
    with scratch(paths.PREPARED.with_name("source")) as cache, waiting("looking at the images"):
        opened = open_source(parameters(first).data, cache)
        first = first.joined(rules.fractions({name: split.count for name, split in opened.splits.items()}))
        params = parameters(first)
        survey = look(opened, params.data)
        reading = _seconds_an_image(opened, params, min(available_cores(), machine.threads * machine.processes))
    with waiting("timing a few steps"):
        choice, plan = _fit(first, survey, machine, minutes, side, reading)
    kept = write(file, choice)
    return report(source, survey, machine, parameters(choice), plan, minutes, file, kept, opened.understood())


def parameters(choice: Choice) -> Params:
    """The default file with the chosen values."""
    tree = read_yaml(PRESETS / f"{DEFAULT}.yaml")
    patch(tree, choice.values)
    return validate(tree, "the parameters that `start` chooses")


def _fit(
    first: Choice, survey: Survey, machine: Machine, minutes: float, side: int | None, reading: float
) -> tuple[Choice, Plan]:
    """The largest images and the widest network for which the time is enough; else the smallest of both."""
    enough = ENOUGH if survey.images["train"] >= FEW else ENOUGH_FOR_FEW
    sides = rules.sides(survey, side, machine)
    for pixels, reason in sides.items():
        known = first.joined(rules.of_side(survey, pixels, reason, machine))
        for width in rules.widths(pixels, narrow=pixels == min(sides)):
            choice = known.joined(width)
            params = parameters(choice)
            task = vqvae_task(params, image_stats(params))
            step = step_seconds(task, params.stage1_vqvae.training, params, machine.processes)
            if STAGE1_PART * USED * 60 * minutes / step >= enough:
                break
        else:
            continue
        break
    classes = len(survey.classes or ())
    plan = Plan(survey, params, measure(params, classes, machine.processes), minutes, reading, machine.compiler)
    return with_steps_of_prior(choice, plan, machine, lambda params: prior_step(params, classes, machine.processes))


def with_steps_of_prior(
    choice: Choice, plan: Plan, machine: Machine, seconds: Callable[[Params], float]
) -> tuple[Choice, Plan]:
    """All that was chosen, with smaller batches of the prior if the time allows it few steps, and more of smaller ones.

    Args:
        choice: what was chosen before the plan.
        seconds: measures the prior's training step with these parameters.
    """
    for smaller in rules.smaller_batches(plan.survey, machine.processes):
        if plan.steps[STAGE2] >= ENOUGH_FOR_PRIOR:
            break
        params = parameters(choice.joined(smaller))
        step = seconds(params)
        if WORTH_HALVING * step > plan.times.prior_step:
            break
        choice, plan = choice.joined(smaller), replace(plan, params=params, times=replace(plan.times, prior_step=step))
    return choice.joined(plan.choice), plan


def _seconds_an_image(source: Source, params: Params, threads: int) -> float:
    """How long `prepare` takes for one image.

    Args:
        threads: of all processes together.
    """
    split = source.splits["train"]
    rows = np.unique(np.linspace(0, split.count - 1, READ).astype(int))
    began = time.perf_counter()
    with decoding():
        for image in split.images(rows):
            try:
                read_image(image.content, params.data)
            except BadImage:
                continue
    return (time.perf_counter() - began) / len(rows) / threads
