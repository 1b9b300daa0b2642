"""Divides the source's images into training, validation and test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stage0_images.columns import some_of
from stage0_images.parameters import DataParams
from tessera import paths
from tessera.errors import UserError
from tessera.randomness import seed_of

if TYPE_CHECKING:
    from stage0_images.columns import Source, SourceSplit


@dataclass(frozen=True)
class Part:
    """What one prepared split is made of: some rows of one of the source's splits."""

    split: SourceSplit
    rows: np.ndarray


def divide(source: Source, params: DataParams) -> dict[str, Part]:
    """Divides the source's images into train, validation and test.

    A split that the source has is used as it is. A missing one is drawn from the training images with the random seed
    `data.split_seed`: `round(fraction * n)` of the n training images, at least one, and of each class its share
    (`shares`).

    Raises:
        UserError: a split would be empty.
    """
    train = source.splits["train"]
    wanted = {"test": params.test_fraction, "validation": params.validation_fraction}
    cut = {name: fraction for name, fraction in wanted.items() if name not in source.splits}
    sizes = {name: max(1, round(fraction * train.count)) for name, fraction in cut.items()}
    if train.count < 1 + len(cut):
        needed = ("one image is needed", "two images are needed", "three images are needed")[len(cut)]
        raise UserError(
            f"data.source: {params.source!r}: {needed}, one for each of {', '.join(['train', *cut])}; it has "
            f"{train.count} to divide, so add images{_unread(source)}"
        )
    if sum(sizes.values()) >= train.count:
        raise UserError(
            f"data.source: {params.source!r}: the split train would be empty: of {train.count} training images, "
            f"{' and '.join(f'{size} would go to {name}' for name, size in sizes.items())}; lower "
            f"{' and '.join(f'data.{name}_fraction ({cut[name]})' for name in sizes)}"
        )
    parts = {name: Part(split, np.arange(split.count)) for name, split in source.splits.items()}
    order = np.random.Generator(np.random.Philox(seed_of("split", params.split_seed))).permutation(train.count)
    for name, size in sizes.items():
        taken = _stratified(order, train.labels, size)
        parts[name] = Part(train, np.sort(order[taken]))
        order = order[~taken]
    parts["train"] = Part(train, np.sort(order))
    empty = [name for name, part in parts.items() if not len(part.rows)]
    if empty:
        raise UserError(f"data.source: {params.source!r}: the split {empty[0]} has no image; add images, or remove it")
    return {name: parts[name] for name in paths.SPLITS}


def _unread(source: Source) -> str:
    """Names the first files that lie beside the images of a source and are not read."""
    return f" (not read: {some_of([one.file for one in source.aside])})" if source.aside else ""


def shares(counts: np.ndarray, size: int) -> np.ndarray:
    """How many images of each class to take, so that `size` are taken and every class gives about the same part.

    With n images in all, class c should give `size * counts[c] / n`. It gives the whole part of this number, and one
    more if its fraction is among the largest (of equal ones, that of the first class). A class keeps its last image as
    long as another class has two.

    Args:
        counts: the number of images of each class, int64 (classes,).
        size: less than their sum.

    Returns:
        int64 (classes,) with the sum `size`.
    """
    whole, fraction = np.divmod(size * counts, counts.sum())
    by_fraction = np.argsort(-fraction, kind="stable")
    taken = np.minimum(whole, np.maximum(counts - 1, 0))
    for room in (counts - 1, counts):
        while taken.sum() < size and (taken < room).any():
            open_classes = by_fraction[taken[by_fraction] < room[by_fraction]]
            taken[open_classes[: size - taken.sum()]] += 1
    return taken


def _stratified(order: np.ndarray, labels: np.ndarray | None, size: int) -> np.ndarray:
    """Which of the rows `order` (m,) are taken: of each class the first ones, as many as `shares` says, bool (m,)."""
    classes = np.zeros(len(order), np.int64) if labels is None else labels[order]
    taken = np.zeros(len(order), bool)
    for label, share in enumerate(shares(np.bincount(classes), size)):
        taken[np.flatnonzero(classes == label)[:share]] = True
    return taken
