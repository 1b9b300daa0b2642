"""Pictures of a prior while it is trained: some of its samples, decoded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from sampling.generate import Streams, generate
from sampling.labels import Classes
from sampling.pictures import classes_in_rows
from sampling.settings import Settings
from stage1_vqvae.model import load_vqvae
from tessera import paths
from tessera.errors import UserError
from tessera.images.grids import COLUMNS, image_grid
from tessera.images.pixels import to_uint8

if TYPE_CHECKING:
    from stage2_prior.task import PriorTask

CLASSES = 8  # that a picture shows at most, a row each
EACH = 4  # images of a class
SEED = 0
LIMIT = 60.0  # seconds for one picture; other processes wait meanwhile


class Samples:
    """Draws samples of a prior with the default settings, from the same random numbers each time.

    A row shows one class. Without labels the samples fill as many rows.

    Raises:
        UserError: models/vqvae is missing, or is not the one whose codes the prior is trained on.
    """

    def __init__(self, task: PriorTask) -> None:
        self.prior = task.model
        device = next(self.prior.parameters()).device
        self.vqvae, manifest = load_vqvae(paths.VQVAE)
        task.codes.manifest.require_parent("vqvae", manifest.identity, paths.CODES)
        self.vqvae.to(device)
        self.classes = Classes.of(self.prior)
        trained = self.classes.trained
        few = min(CLASSES, len(trained))
        self.shown = [trained[i * len(trained) // few] for i in range(few)]  # evenly spaced
        self.labels = torch.tensor(self.shown).repeat_interleave(EACH).to(device) if few else None
        count = (few or CLASSES) * EACH
        self.streams = Streams(SEED, tuple(range(count)), device)
        self.settings = Settings() if self.prior.null_label else Settings(guidance_scale=1.0)

    def __call__(self) -> torch.Tensor:
        began = time.monotonic()

        def tick(share: float) -> None:
            if time.monotonic() - began > LIMIT:
                raise UserError(f"drawing {len(self.streams.indices)} images takes more than {LIMIT:.0f} s")

        tokens = generate(self.prior, self.labels, self.streams, self.settings, tick=tick)
        images = self.vqvae.decode(self.vqvae.layout.unflatten(tokens))
        pixels = to_uint8(images.cpu())
        if not self.shown:
            return image_grid(pixels, COLUMNS)
        return classes_in_rows(pixels, self.shown, EACH, self.classes)
