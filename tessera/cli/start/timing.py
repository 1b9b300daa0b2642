"""How long the parts of a run take on this machine: a few steps and batches on random images, with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.task import ClassifierTask
from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage1_vqvae.model import VQVAE, model_config
from stage1_vqvae.task import VQVAETask
from stage2_prior.priors.build import build_prior
from stage2_prior.task import PriorTask
from tessera.codes.layout import CodeLayout
from tessera.codes.store import Codes, CodeSplit, PassArray
from tessera.features.classifiers.build import build_classifier
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit, Stats
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
    vqvae = VQVAE(model_config(params.stage1_vqvae, stats))
    vqvae_step = step_seconds(vqvae_task(params, vqvae, stats), params.stage1_vqvae.training, params)
    codes = random_codes(vqvae.layout, classes)
    training = params.stage2_prior.chosen.training
    config = params.stage2_prior.config() | {"layout": vqvae.layout.to_json(), "num_classes": classes}
    prior = build_prior(config)
    prior_step = step_seconds(PriorTask(prior, codes, training), training, params)
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


def image_stats(params: Params) -> Stats:
    """A description of images as the parameters prepare them."""
    data = params.data
    return Stats((data.channels, data.height, data.width), None, {}, 0.0, 0.1, data.preparation())


def step_seconds(task: Task, training: TrainingParams, params: Params) -> float:
    """The median of a few steps of the one training loop, as the task and the parameters have them."""
    state = StateFolder("start", "timing", exclusive=False)
    trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
    task.model.train()
    count = 0

    def step() -> None:
        nonlocal count
        trainer.stepper.take(count, task.batch(count, slice(None)), trainer.progress)
        count += 1

    return _seconds(step)


def vqvae_task(params: Params, model: VQVAE, stats: Stats) -> VQVAETask:
    """The task of stage 1 over random images."""
    section = params.stage1_vqvae
    images = random_images(stats, max(256, section.training.batch_size), 0)
    return VQVAETask(model, images, images, section.training, section.augmentation)


def classifier_task(params: Params, stats: Stats, classes: int) -> ClassifierTask:
    """The classifier's task over random images."""
    chosen = params.classifier.chosen
    images = random_images(stats, max(256, chosen.training.batch_size), classes)
    shape = {"image_shape": list(stats.image_shape), "num_classes": classes}
    model = build_classifier({"name": params.classifier.name, **shape, **chosen.arguments()})
    return ClassifierTask(model, images, images, chosen.shift, chosen.training)


def random_images(stats: Stats, count: int, classes: int) -> ImageSplit:
    """Random images, with labels if there are classes."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % classes if classes else None
    return ImageSplit(random.integers(0, 256, (count, *stats.image_shape), dtype=np.uint8), labels)


def random_codes(layout: CodeLayout, classes: int, count: int = 256) -> Codes:
    """Random codes of a training split."""
    random, sizes = np.random.default_rng(0), layout.codebook_sizes.numpy()
    tokens = random.integers(0, sizes, (count, layout.num_tokens))
    labels = np.arange(count) % classes if classes else None
    split = CodeSplit(PassArray(tokens, 1), labels, sizes - 1, "random codes", "")
    return Codes({"train": split}, layout, tuple(map(str, range(classes))) or None, None)


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of a few calls after one that is not counted; at least one, and `LONG_ENOUGH` seconds at most."""
    work()
    times: list[float] = []
    while len(times) < 5 and sum(times) < LONG_ENOUGH:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times))
