"""How long the parts of a run take on this machine: a few steps and batches on random images, with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sampling.generate import Streams, generate
from sampling.settings import Settings
from tessera.cli.start.rehearsal import classifier_task, image_stats, prior_task, random_images, vqvae_task
from tessera.images.pixels import to_float
from tessera.launch.devices import accelerator
from tessera.parameters import Params
from tessera.parameters.training import TrainingParams
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import Task

LONG_ENOUGH = 2.0  # seconds of measuring one thing
FORWARD_IMAGES = 64
DRAWN = 32  # images of one batch while sampling is measured


@dataclass(frozen=True)
class Times:
    """What was measured, in seconds.

    Attributes:
        vqvae_step, prior_step, classifier_step: one step of each training; 0 for a classifier that there is not.
        reconstruction: one image through the VQ-VAE and back.
        encoding: one image to its codes.
        nats: the nats of one image's codes.
        sample: one image drawn and decoded, with guidance if the images have labels.
        weights: number of weights of all models.
    """

    vqvae_step: float
    prior_step: float
    classifier_step: float
    reconstruction: float
    encoding: float
    nats: float
    sample: float
    weights: int


def measure(params: Params, classes: int) -> Times:
    """Measure a run with these parameters.

    Args:
        classes: number of classes of the images; 0 without labels.
    """
    stats = image_stats(params)
    task = vqvae_task(params, stats)
    vqvae = task.vqvae
    vqvae_step = step_seconds(task, params.stage1_vqvae.training, params)
    task = prior_task(params, vqvae.layout, classes)
    prior, codes = task.model, task.codes
    prior_step = step_seconds(task, params.stage2_prior.chosen.training, params)
    classifier_step, models = 0.0, [vqvae, prior]
    if classes and params.classifier.name != "none":
        task = classifier_task(params, stats, classes)
        classifier_step = step_seconds(task, params.classifier.chosen.training, params)
        models.append(task.model)
    device = next(vqvae.parameters()).device
    vqvae.eval()
    prior.eval()
    images = to_float(random_images(stats, FORWARD_IMAGES, 0).pixels(slice(None)).to(device))
    tokens = codes["train"].rows(slice(0, FORWARD_IMAGES)).to(device)
    streams = Streams(0, tuple(range(DRAWN)), device)
    labels = torch.arange(DRAWN, device=device) % classes if classes else None
    settings = Settings() if classes else Settings(guidance_scale=1.0)
    with torch.no_grad():
        encoding = _seconds(lambda: vqvae.encode(images)) / FORWARD_IMAGES
        reconstruction = _seconds(lambda: vqvae.decode(vqvae.encode(images))) / FORWARD_IMAGES
        nats = _seconds(lambda: prior.nll(tokens, None)) / FORWARD_IMAGES
        drawing = _seconds(lambda: generate(prior, labels, streams, settings)) / DRAWN
    decoding = max(0.0, reconstruction - encoding)
    weights = sum(parameter.numel() for model in models for parameter in model.parameters())
    sample = drawing + decoding
    return Times(vqvae_step, prior_step, classifier_step, reconstruction, encoding, nats, sample, weights)


def step_seconds(task: Task, training: TrainingParams, params: Params) -> float:
    """The shortest of a few steps of the one training loop, as the task and the parameters have them."""
    state = StateFolder("start", "timing", exclusive=False)
    trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
    task.model.train()
    count = 0

    def step() -> None:
        nonlocal count
        trainer.stepper.take(count, task.batch(count, slice(None)), trainer.progress)
        count += 1

    return _seconds(step)


def _seconds(work: Callable[[], Any]) -> float:
    """The shortest time of a few calls after one that is not counted: the one that other programs disturbed least.

    There are at least two, and no more than five after `LONG_ENOUGH` seconds.
    """
    work()
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < LONG_ENOUGH):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
