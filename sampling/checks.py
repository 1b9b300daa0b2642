"""What the pipeline refuses at its border. All raise UserError."""

from __future__ import annotations

from typing import Any

import torch

from sampling.settings import Settings
from stage2_prior.priors.base import Prior
from tessera.errors import UserError

SLACK = 1e-3  # beyond [-1, 1], for images that were computed


def numbers(*named: tuple[str, Any, int]) -> None:
    """Refuse what is no int, since 1.0 or True would stand for another random stream than 1, or is below its least."""
    for name, value, least in named:
        if type(value) is not int or value < least:
            raise UserError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def sizes(batch_size: Any) -> list[tuple[str, Any, int]]:
    """A batch size to check, where one is given."""
    return [] if batch_size is None else [("batch_size", batch_size, 1)]


def probabilities(values: Any, labels: Any, prior: Prior) -> torch.Tensor | None:
    """Probabilities of the classes, float64 (num_classes,), by which labels are to be summed out, or None."""
    if values is None:
        return None
    if labels is not None:
        raise UserError("class_probabilities: sums over all labels, so give no labels beside them")
    p, classes = torch.as_tensor(values, dtype=torch.float64).cpu(), prior.num_classes
    whole = abs(p.sum().item() - 1) <= 1e-6  # not if one is NaN
    if p.shape != (classes,) or not classes or (p < 0).any() or not whole:
        raise UserError(
            f"class_probabilities: expected {classes} numbers of at least 0 that sum to 1, one a class, "
            f"got {tuple(p.shape)} that sum to {p.sum().item():g}"
        )
    return p


def shape(images: torch.Tensor, expected: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Refuse images of another shape (C, H, W) or dtype."""
    if images.dtype != dtype or images.ndim != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise UserError(
            f"images: expected {dtype} (B, {', '.join(map(str, expected))}), got {images.dtype} "
            f"{tuple(images.shape)}; resize or convert them"
        )


def in_range(images: torch.Tensor) -> None:
    """Refuse float images out of [-1, 1]."""
    if not (images.amin() >= -1 - SLACK and images.amax() <= 1 + SLACK):
        raise UserError(
            f"images: expected values in [-1, 1], got {images.amin():g} to {images.amax():g}; "
            "`tessera.images.prepared.to_float` makes them of uint8"
        )


def null_label(labels: torch.Tensor | None, prior: Prior, settings: Settings | None = None) -> None:
    """Refuse what needs the null label (no label, or guidance) of a prior that was never shown it."""
    if prior.null_label:
        return
    guided = settings is not None and settings.guided(range(len(prior.layout.levels)))
    if guided or labels is None or (labels == prior.num_classes).any():
        raise UserError(
            "this prior was trained with label_dropout 0 and does not know the null label: give every image a "
            "class, and guidance_scale 1; or train it with label_dropout above 0"
        )
