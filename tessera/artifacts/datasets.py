"""What folders of images and of codes share: a JSON description, arrays of a known shape, and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from tessera.artifacts.checked import CheckedArray, PartedArray
from tessera.artifacts.manifests import BLOCK, Manifest
from tessera.errors import UserError

T = TypeVar("T")

Array = np.ndarray | CheckedArray | PartedArray


def copied(array: Array, indices: np.ndarray | slice) -> np.ndarray:
    """The given rows, as an array of their own."""
    rows = array[indices]
    # Index arrays always give a new array. A slice may still be a view of the memory-mapped file.
    return rows.copy() if isinstance(indices, slice) and rows.base is not None else rows


def labels_at(labels: Array | None, indices: np.ndarray | slice) -> torch.Tensor | None:
    """The int64 labels (m,) of the given rows, or None where there are no labels."""
    return None if labels is None else torch.from_numpy(copied(labels, indices).astype(np.int64, copy=False))


def described(manifest: Manifest, name: str, parse: Callable[[Any], T]) -> T:
    """The parsed contents of a JSON file that says what a folder's arrays are.

    Args:
        parse: makes the result of the JSON value.

    Raises:
        UserError: the file is damaged, or another version of this program wrote it.
    """
    raw = manifest.read_json(name)
    try:
        return parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{manifest.folder / name}: not as this version writes it ({type(error).__name__}: {error}); "
            f"{manifest.remedy}"
        ) from error


def require(array: CheckedArray | PartedArray, dtype: np.dtype, shape: tuple[int, ...], manifest: Manifest) -> None:
    """Refuse an array of another dtype or shape than the folder's description says.

    Raises:
        UserError: with both.
    """
    if (array.dtype, array.shape) != (dtype, shape):
        name = array.file if isinstance(array, CheckedArray) else array.parts[0].file.parent
        raise UserError(f"{name}: {array.dtype} of shape {array.shape}, expected {dtype} {shape}; {manifest.remedy}")


def open_labels(manifest: Manifest, split: str, count: int, num_classes: int) -> CheckedArray | None:
    """The labels int64 (count,) of a split, or None if there are no classes.

    Raises:
        UserError: the file is missing or damaged, or a label is not from 0 to num_classes - 1.
    """
    if not num_classes:
        return None
    labels = CheckedArray(manifest, f"{split}/labels.npy")
    require(labels, np.dtype(np.int64), (count,), manifest)
    _check_range(labels, num_classes, manifest)
    return labels


def _check_range(array: CheckedArray, stop: int, manifest: Manifest) -> None:
    """Refuse labels outside 0 to `stop` - 1. They are read piece by piece, in bounded memory.

    Raises:
        UserError: with the first such label and its row.
    """
    rows = max(1, BLOCK // max(1, array.dtype.itemsize))
    for start in range(0, len(array), rows):
        values = array[start : start + rows]
        wrong = np.flatnonzero((values < 0) | (values >= stop))
        if len(wrong):
            found = f"label {values[wrong[0]]} in row {start + wrong[0]}"
            raise UserError(f"{array.file}: {found}, expected 0 to {stop - 1}; {manifest.remedy}")
