"""The trainings as params.yaml has them, over random images and codes: for measuring before there are any."""

from __future__ import annotations

import numpy as np

from evaluation.task import ClassifierTask
from stage1_vqvae.model import VQVAE
from stage1_vqvae.objective import Objective
from stage1_vqvae.sharpening import DecoderTask, decoder_copy, task_of
from stage1_vqvae.task import VQVAETask
from stage2_prior.priors.build import build_prior
from stage2_prior.task import PriorTask
from tessera.codes.layout import CodeLayout
from tessera.codes.store import Codes, CodeSplit, PassArray
from tessera.features.classifiers.build import build_classifier
from tessera.images.prepared import ImageSplit, Stats
from tessera.parameters import Params


def image_stats(params: Params) -> Stats:
    """A description of images as the parameters prepare them."""
    data = params.data
    return Stats((data.channels, data.height, data.width), None, {}, 0.0, 0.1, data.preparation())


def vqvae_task(params: Params, stats: Stats) -> VQVAETask:
    """The task of stage 1 over random images, with a new VQ-VAE."""
    section = params.stage1_vqvae
    images = random_images(stats, max(256, section.training.batch_size), 0)
    return task_of(section, VQVAE(section.config(stats)), images, images)


def decoder_task(params: Params, trained: VQVAETask) -> DecoderTask:
    """The task of `refine_decoder`, whether it is on or not, over the images of stage 1's task and a copy of its model.

    Raises:
        UserError: the weights of a feature network are missing.
    """
    section = params.refine_decoder
    blocks = section.added_blocks if getattr(params.stage1_vqvae.network.chosen, "grows", False) else 0
    model = Objective(decoder_copy(trained.vqvae, blocks), section.objective.values())
    return DecoderTask(model, trained.train, trained.validation, section.training, section.augmentation)


def prior_task(params: Params, layout: CodeLayout, classes: int) -> PriorTask:
    """The prior's task over random codes, with a new prior."""
    config = params.stage2_prior.config() | {"layout": layout.to_json(), "num_classes": classes}
    return PriorTask(build_prior(config), random_codes(layout, classes), params.stage2_prior.chosen.training)


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
