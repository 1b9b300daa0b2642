"""Checks of what users pass to the pipeline. All raise a UserError."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from sampling.settings import Settings
from stage2_prior.priors.base import Prior
from tessera.console import say
from tessera.errors import UserError
from tessera.launch.memory import free_bytes
from tessera.project import ROOT

SLACK = 1e-3  # how far images may lie outside [-1, 1]: computed ones are rounded
MOST_IMAGES = 10**9  # of one call


def numbers(*named: tuple[str, Any, int]) -> None:
    """Refuses values that are not whole numbers, and numbers below their lower bound.

    Integers of numpy are whole numbers. True and 1.0 are refused, because they would select another random stream
    than 1.

    Args:
        named: (name, value, lower bound) of each number.

    Raises:
        UserError: names the first value that is refused.
    """
    for name, value, least in named:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise UserError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def count(n: Any) -> int:
    """The number of images of one call, as an int.

    Raises:
        UserError: it is no whole number from 1 to `MOST_IMAGES`.
    """
    numbers(("n", n, 1))
    if n > MOST_IMAGES:
        raise UserError(f"n: expected at most {MOST_IMAGES} images, got {n}; draw them in several calls, with `start`")
    return int(n)


def likelihood(vqvae: Any) -> None:
    """Refuses a VQ-VAE whose decoder was not trained by its likelihood."""
    if not vqvae.has_likelihood:
        raise UserError(
            "bits per dimension are unavailable: stage1_vqvae.objective had terms beside the likelihood's, so none was "
            "fitted; train with every weight 0 there, and sharpen a copy of the decoder by refine_decoder"
        )


def fit_in_memory(n: int, shape: tuple[int, int, int]) -> None:
    """Refuses to gather more images (C, H, W) in one tensor than the free memory holds.

    While batches are joined to one tensor, every image is in memory twice.
    """
    channels, height, width = shape
    needed, free = 2 * 4 * n * channels * height * width, free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"n: {n} images take {needed / 2**30:.1f} GB of memory and {free / 2**30:.1f} GB are free; draw fewer, or "
            "take them batch by batch from `batches`"
        )


def device(wanted: Any) -> torch.device:
    """The device that a user named, or the GPU (else the CPU) for None.

    Raises:
        UserError: it does not exist here, or has no float64, which exact sampling needs.
    """
    try:
        found = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        if found.type != "mps":
            torch.zeros(1, dtype=torch.float64, device=found).item()
            return found
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"device: expected cpu, or cuda where there is a GPU, got {wanted!r} ({reason})") from error
    raise UserError("device mps: it has no float64, which exact sampling needs; use cpu")


def warn_of_other_checkout(folder: Path) -> None:
    """Warns, in a line on standard error, if `folder` lies in another checkout of Tessera than the code that runs.

    Python may find an installed Tessera, or that of PYTHONPATH, before the one in the current folder.
    """
    for here in (folder, *folder.parents):
        if (here / "tessera" / "project.py").is_file():
            if not here.samefile(ROOT):
                say(
                    f"warning: the code of {ROOT} runs here, and not that of {here}; to change it run `python -m`, or "
                    f"`pip install -e {here}`"
                )
            return


def sizes(batch_size: Any) -> list[tuple[str, Any, int]]:
    """The arguments with which `numbers` checks a batch size: one (name, value, least value), or none for None."""
    return [] if batch_size is None else [("batch_size", batch_size, 1)]


def probabilities(values: Any, labels: Any, prior: Prior) -> torch.Tensor | None:
    """The probabilities p(y) of the classes, float64 (num_classes,), for the sum over labels; None if `values` is None.

    Raises:
        UserError: they are not probabilities of the prior's classes, or `labels` are given too.
    """
    if values is None:
        return None
    if labels is not None:
        raise UserError("class_probabilities: sums over all labels, so give no labels beside them")
    classes = prior.num_classes
    try:
        p = torch.as_tensor(values, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"class_probabilities: expected {classes} numbers of at least 0 that sum to 1, one a class, got "
            f"{type(values).__name__}; equal ones are [1 / {classes}] * {classes}"
        ) from error
    whole = abs(p.sum().item() - 1) <= 1e-6  # not if one is NaN
    if p.shape != (classes,) or not classes or (p < 0).any() or not whole:
        raise UserError(
            f"class_probabilities: expected {classes} numbers of at least 0 that sum to 1, one a class, "
            f"got {tuple(p.shape)} that sum to {p.sum().item():g}"
        )
    return p


def shape(images: torch.Tensor, expected: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Refuses images of another shape than (B, C, H, W), or of another dtype.

    `expected`: (C, H, W).
    """
    if images.dtype != dtype or images.ndim != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise UserError(
            f"images: expected {dtype} (B, {', '.join(map(str, expected))}), got {images.dtype} "
            f"{tuple(images.shape)}; resize or convert them"
        )


def in_range(images: torch.Tensor) -> None:
    """Refuses float images with values outside [-1, 1]."""
    if not (images.amin() >= -1 - SLACK and images.amax() <= 1 + SLACK):
        raise UserError(
            f"images: expected values in [-1, 1], got {images.amin():g} to {images.amax():g}; "
            "`tessera.images.pixels.to_float` makes them of uint8"
        )


def null_label(labels: torch.Tensor | None, prior: Prior, settings: Settings | None = None) -> None:
    """Refuses what needs the null label, if training never showed it to the prior.

    Guidance needs it, and so does an image without a label.

    Args:
        labels: int64 (B,) or None for the null label.
        settings: the sampling settings; None if nothing is sampled.
    """
    if prior.null_label:
        return
    guided = settings is not None and settings.guided(range(len(prior.layout.levels)))
    if guided or labels is None or (labels == prior.num_classes).any():
        raise UserError(
            "this prior was trained with label_dropout 0 and does not know the null label: give every image a class "
            '(labels="each" gives the classes in turn), and guidance_scale 1; or train it with label_dropout above 0'
        )
