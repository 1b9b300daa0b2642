"""Computes the codebooks of a VQ-VAE from images: before training, and for averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from stage1_vqvae.model import VQVAE
from tessera.randomness import generator

VECTORS_PER_CODE = 256  # enough to initialise a codebook: k-means becomes no better with more vectors

Batches = Callable[[], Iterable[torch.Tensor]]  # returns float images (B, C, H, W) in [-1, 1], the same at each call


@torch.no_grad()
def initialise_codebooks(model: VQVAE, batches: Batches, seed: int) -> None:
    """Lets each quantizer place its codes by encoded images, coarsest level first. Leaves the model in training mode.

    What a quantizer does with the vectors is its own matter (`Quantizer.initialise_from_data`). Those that do not look
    at the data keep the codes of their constructor.

    A quantizer of one level gets vectors of that level. They depend on the codes of coarser levels, which come first. A
    quantizer that all levels share is initialised once per level. The first time it gets the vectors of the coarsest
    level. The second time it gets those of the two coarsest levels, where the finer vectors depend on the codes just
    found. Each further time adds a level.

    Args:
        model: the model before its first step of training.
        batches: a function that returns batches of images, float (B, C, H, W) in [-1, 1]. They are the same at each
            call and on every process.
        seed: the training's random seed. It picks the vectors and starts k-means.
    """
    model.eval()
    for level in range(len(model.layout.levels)):
        first = 0 if model.levels_share_a_quantizer else level
        random = generator("start", seed, level)
        vectors = _initial_vectors(model, range(first, level + 1), batches, random)
        model.quantizer_of(level).initialise_from_data(vectors, random)
    model.train()


def _initial_vectors(
    model: VQVAE, levels: range, batches: Batches, random: torch.Generator
) -> Callable[[], torch.Tensor]:
    """A function that returns z, float32 (M, D), of some levels: all vectors, or as many at random as are enough.

    Images are encoded at its first call. Further calls return the same tensor.
    """
    found: list[torch.Tensor] = []

    def vectors() -> torch.Tensor:
        if not found:
            z = torch.cat([model.vectors(levels, images) for images in batches()])
            enough = VECTORS_PER_CODE * model.quantizer_of(levels.start).codebook_size
            if len(z) > enough:
                z = z[torch.randperm(len(z), generator=random)[:enough].to(z.device)]
            found.append(z)
        return found[0]

    return vectors


@torch.no_grad()
def re_estimate_codebooks(model: VQVAE, batches: Batches) -> None:
    """Computes the codebooks that are means of vectors anew for the present weights, coarsest level first.

    Args:
        model: the model, in evaluation mode.
        batches: a function that returns images. They must be the same on every process.
    """
    for index, quantizer in enumerate(model.quantizers):
        levels = range(len(model.layout.levels)) if model.levels_share_a_quantizer else range(index, index + 1)
        kept: list[torch.Tensor] = []  # a quantizer of several parts asks for the vectors several times

        def vectors(levels: range = levels, kept: list[torch.Tensor] = kept) -> list[torch.Tensor]:
            if not kept:
                kept.extend(model.vectors(levels, images) for images in batches())
            return kept

        quantizer.re_estimate(vectors)
