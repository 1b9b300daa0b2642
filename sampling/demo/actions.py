"""What the demo does, as functions of a pipeline and of uint8 arrays. None of them knows the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sampling import pictures
from sampling.labels import Classes
from sampling.pipeline import TwoStagePipeline
from tessera.errors import UserError
from tessera.images.grids import image_grid
from tessera.images.pixels import to_float, to_uint8

MOST = 256  # images of one request, so that a slip of the finger does not occupy the machine for hours
EVERY = -1  # in place of a class's number: every class


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn.

    Attributes:
        images: uint8 (n, C, H, W), class by class.
        names: of their classes; empty where the model has no classes.
        picture: all of them in one picture, uint8 (height, width, 3).
    """

    images: np.ndarray
    names: list[str]
    picture: np.ndarray


def sample(pipeline: TwoStagePipeline, label: int | None, count: int, columns: int, **settings: Any) -> Drawn:
    """Draws images. The picture is the one that `python -m sampling.sample` writes for the same values.

    Args:
        label: the number of a class, `num_classes` for no class in particular, `EVERY`, or None without classes.
        count: images of each class.
        columns: images a row, where there are several classes.
        settings: those of `TwoStagePipeline.batches`.

    Raises:
        UserError: a setting that does not exist, or more images than `MOST`.
    """
    classes = pipeline.classes
    numbers = list(classes.trained)[: pictures.GRID_CLASSES] if label == EVERY else [] if label is None else [label]
    number = at_most(count, max(1, len(numbers)))
    pixels = to_uint8(torch.cat(list(pipeline.batches(number, numbers or None, **settings))))
    picture = pictures.arranged(pixels, numbers, columns, classes)
    ordered = torch.cat([pixels[place :: len(numbers)] for place in range(len(numbers))]) if numbers else pixels
    names = [classes.name(each) for each in numbers for _ in range(int(count))]
    return Drawn(ordered.numpy(), names, picture.permute(1, 2, 0).numpy())


def complete(
    pipeline: TwoStagePipeline,
    pixels: np.ndarray,
    known: np.ndarray,
    label: int | None,
    count: int,
    columns: int,
    **settings: Any,
) -> Drawn:
    """Draws the unknown pixels of a picture anew, several times.

    Args:
        pixels: uint8 (C, H, W).
        known: bool (H, W), True where a pixel is kept.
        label: see `sample`; `EVERY` is no class in particular.
        count: completions.
        columns: images a row of the picture, which begins with the given pixels.
        settings: those of `TwoStagePipeline.complete`.

    Raises:
        UserError: every pixel is known, or a setting does not exist.
    """
    label = one_class(pipeline, label)
    if known.all():
        raise UserError("nothing is painted: paint over the part of the picture that is to be drawn anew")
    count = at_most(count, 1)
    found = pictures.completions(pipeline, torch.from_numpy(pixels), torch.from_numpy(known), count, label, settings)
    picture = image_grid(found, min(columns, len(found)))
    return Drawn(found[1:].numpy(), [], picture.permute(1, 2, 0).numpy())


@torch.no_grad()
def painted(layers: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a picture are known, bool (H, W), from what was painted on an enlarged one.

    A pixel is unknown if the brush touched any part of it.

    Args:
        layers: RGBA (h, w, 4), any size; what is not transparent is painted.
        shape: (H, W) of the picture.
    """
    known = np.ones(shape, dtype=bool)
    for layer in layers:
        paint = torch.from_numpy(np.ascontiguousarray(layer[..., 3] > 0)).float()[None, None]
        known &= torch.nn.functional.adaptive_max_pool2d(paint, shape)[0, 0].numpy() == 0
    return known


def likelihood(pipeline: TwoStagePipeline, pixels: np.ndarray, label: int | None) -> list[tuple[str, float]]:
    """The bits per dimension of a picture, each with what it measures. The last one is the sum.

    Args:
        pixels: uint8 (C, H, W).
        label: see `sample`; `EVERY` is no class in particular.

    Raises:
        UserError: the model has no likelihood, or needs a class.
    """
    label = one_class(pipeline, label)
    labels = None if label is None else [label]
    found = pipeline.log_likelihood(torch.from_numpy(pixels)[None], labels)
    rates, given = found["rate_by_level"][0].tolist(), "the class" if _is_class(label, pipeline.classes) else ""
    several, rows = len(rates) > 1, [("distortion: the pixels, given the codes", found["distortion"].item())]
    for level, rate in enumerate(rates):
        known = " and ".join([*(["coarser codes"] if level else []), *([given] if given else [])])
        which = f" of level {level + 1}" if several else ""
        rows.append((f"rate: the codes{which}{f', given {known}' if known else ''}", rate))
    error = f", an estimate (± {found['rate_standard_error'].item():.3f})" if "rate_standard_error" in found else ""
    return [*rows, (f"in all{error}", found["total"].item())]


def reconstruct(pipeline: TwoStagePipeline, pixels: np.ndarray) -> np.ndarray:
    """The codes of a picture, one after another: int64 (N,).

    Args:
        pixels: uint8 (C, H, W).
    """
    with torch.no_grad():
        codes = pipeline.vqvae.encode(to_float(torch.from_numpy(pixels))[None].to(pipeline.device))
    return pipeline.layout.flatten(codes)[0].cpu().numpy()


def decoded(pipeline: TwoStagePipeline, tokens: np.ndarray) -> np.ndarray:
    """The picture of codes (N,): uint8 (C, H, W)."""
    return to_uint8(pipeline.decode_tokens(torch.from_numpy(tokens)[None]))[0].numpy()


def at_most(count: Any, classes: int) -> int:
    """The number of images that `count` of each class are.

    Raises:
        UserError: it is no whole number from 1 to `MOST`.
    """
    if not isinstance(count, int | float) or not 1 <= count * classes <= MOST or count != int(count):
        each = f" of each of {classes} classes" if classes > 1 else ""
        raise UserError(f"number of images: expected a whole number from 1 to {MOST // classes}{each}, got {count}")
    return int(count) * classes


def one_class(pipeline: TwoStagePipeline, label: int | None) -> int | None:
    """The label of a single picture: `EVERY` is no class in particular.

    Raises:
        UserError: the model does not know pictures of no class in particular.
    """
    if label != EVERY:
        return label
    if not pipeline.prior.null_label:
        raise UserError("this model needs a class for a picture: choose one in place of every class")
    return pipeline.num_classes


def _is_class(label: int | None, classes: Classes) -> bool:
    return label is not None and label < classes.count
