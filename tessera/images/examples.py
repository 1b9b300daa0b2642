"""Chooses which images of a split are shown in a picture. The same data gives the same images in every run."""

from __future__ import annotations

from typing import Any

import numpy as np


def _evenly(count: int, total: int) -> np.ndarray:
    """`count` different numbers from 0 to total - 1, evenly spaced, int64 (count,); `count` is at most `total`."""
    return np.arange(count) * total // max(1, count)


def spread_over_classes(split: Any, count: int) -> np.ndarray:
    """The rows of the images that stand for a split in a picture.

    The classes take turns in their order: one image of each class, then another of each, and so on. A class that has no
    image left is skipped. The images of a class are evenly spaced over all that it has, since neighbours are often
    alike: frames of one film, or letters of one font. If there are more classes than `count`, the classes shown are
    evenly spaced. Of unlabelled data the images are evenly spaced.

    Args:
        split: has a length n and `labels`, int64 (n,) or None: an `ImageSplit`, or a `CodeSplit` of the same images.
        count: how many rows; all n if there are fewer.

    Returns:
        int64 (min(count, n),), all different.
    """
    count = min(count, len(split))
    if split.labels is None:
        return _evenly(count, len(split))
    labels = np.asarray(split.labels)
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    first = np.searchsorted(ordered, ordered)  # where the images of the same class begin
    turns = np.arange(len(labels)) - first
    shown = np.lexsort((ordered, turns))  # places in `by_class`
    classes = len(np.unique(labels))
    shown = shown[:classes][_evenly(count, classes)] if classes > count else shown[:count]
    sizes, shares = (np.bincount(first[places], minlength=len(labels))[first[shown]] for places in (slice(None), shown))
    return by_class[first[shown] + turns[shown] * sizes // shares]
