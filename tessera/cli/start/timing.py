"""How long the parts of a run take on this machine: a few steps and batches on random images, with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from evaluation.distances import RESAMPLED, RESAMPLES, frechet_of_vectors
from evaluation.distribution import KINDS
from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage1_vqvae.task import VQVAETask
from tessera.cli.start.rehearsal import (
    classifier_task,
    decoder_task,
    image_stats,
    prior_task,
    random_images,
    vqvae_task,
)
from tessera.errors import UserError
from tessera.features.networks.build import build_features
from tessera.images.pixels import to_float
from tessera.launch.devices import accelerator
from tessera.parameters import Params
from tessera.parameters.training import TrainingParams
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.task import Task

LONG_ENOUGH = 3.0  # seconds of measuring one thing
FEWEST, MOST = 3, 9  # calls that are timed
FORWARD_IMAGES = 64
DRAWN = 32  # images of one batch while sampling is measured
COMPARED = 2 + len(KINDS)  # sets of images that `evaluate` compares with the test images


@dataclass(frozen=True)
class Times:
    """What was measured, in seconds: by one process, with its share of each batch and of all images.

    Attributes:
        vqvae_step, prior_step, classifier_step: one step of each training; 0 for a classifier that there is not.
        reconstruction: one image through the VQ-VAE and back.
        encoding: one image to its codes.
        nats: the nats of one image's codes.
        sample: one image drawn and decoded, with guidance if the images have labels.
        weights: number of weights of all models.
        judging: one image through the network in whose features samples are compared with images.
        comparing: all distances of `evaluate`, once the features are there.
        refining: one step of `refine_decoder`, whether it is on or not; None if it cannot be trained here.
    """

    vqvae_step: float
    prior_step: float
    classifier_step: float
    reconstruction: float
    encoding: float
    nats: float
    sample: float
    weights: int
    judging: float = 0.0
    comparing: float = 0.0
    refining: float | None = None


def measure(params: Params, classes: int, processes: int = 1) -> Times:
    """Measure a run with these parameters.

    Args:
        classes: number of classes of the images; 0 without labels.
        processes: among which the images of a batch, and of a split, are shared.
    """
    stats = image_stats(params)
    images_task = vqvae_task(params, stats)
    vqvae = images_task.vqvae
    vqvae_step = step_seconds(images_task, params.stage1_vqvae.training, params, processes)
    task = prior_task(params, vqvae.layout, classes)
    prior, codes = task.model, task.codes
    prior_step = step_seconds(task, params.stage2_prior.chosen.training, params, processes)
    classifier_step, models = 0.0, [vqvae, prior]
    if classes and params.classifier.name != "none":
        task = classifier_task(params, stats, classes)
        classifier_step = step_seconds(task, params.classifier.chosen.training, params, processes)
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
        judging, comparing = _judging(params, models[2] if len(models) > 2 else None, images)
    decoding = max(0.0, reconstruction - encoding)
    return Times(
        vqvae_step,
        prior_step,
        classifier_step,
        reconstruction / processes,
        encoding / processes,
        nats / processes,
        (drawing + decoding) / processes,
        sum(parameter.numel() for model in models for parameter in model.parameters()),
        judging / processes,
        comparing,
        _refining(params, images_task, processes),
    )


def prior_step(params: Params, classes: int, processes: int = 1) -> float:
    """`Times.prior_step` alone, for another batch size; see `measure`."""
    layout = vqvae_task(params, image_stats(params)).vqvae.layout
    return step_seconds(prior_task(params, layout, classes), params.stage2_prior.chosen.training, params, processes)


def _judging(params: Params, classifier: nn.Module | None, images: torch.Tensor) -> tuple[float, float]:
    """`Times.judging` and `Times.comparing`; zeros where no network judges, or where its weights are missing."""
    features = params.evaluation.features
    if features.name == "classifier":
        network = classifier
    else:
        try:
            network = build_features(features.values()).to(images.device)
        except UserError:
            network = None
    if network is None:
        return 0.0, 0.0
    vectors = network.eval().maps(images)[-1].mean((2, 3)) if network is classifier else network.vectors(images)
    run = network.maps if network is classifier else network.vectors
    random = torch.rand(2, RESAMPLED, vectors.shape[1], dtype=torch.float64, device=images.device)
    once = _seconds(lambda: frechet_of_vectors(*random))
    return _seconds(lambda: run(images)) / len(images), COMPARED * (1 + RESAMPLES) * once


def _refining(params: Params, task: VQVAETask, processes: int) -> float | None:
    """`Times.refining`."""
    try:
        return step_seconds(decoder_task(params, task), params.refine_decoder.training, params, processes)
    except UserError:
        return None


def step_seconds(task: Task, training: TrainingParams, params: Params, processes: int = 1) -> float:
    """The seconds of a training step of the task: the median of a few steps of the training loop.

    Args:
        processes: the number of processes that share each batch. The share of one is timed, without communication.
    """
    state = StateFolder("start", "timing", exclusive=False)
    trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
    task.model.train()
    count, rows = 0, slice(0, training.batch_size // processes)

    def step() -> None:
        nonlocal count
        trainer.stepper.take(count, task.batch(count, rows), trainer.progress)
        count += 1

    return _seconds(step)


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of a few calls, after one that is not counted.

    On some machines calls differ by a third even if nothing else runs, so the shortest one would promise too much.
    """
    work()
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < LONG_ENOUGH):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times)
