"""Codes changed by hand: where a click on a picture points, and what stands there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

FRAME = (255, 0, 128)  # the colour of the frame around a code, RGB


@dataclass(frozen=True)
class Place:
    """Where a code of an image stands in its grids. All numbers count from 0."""

    level: int
    row: int
    column: int
    depth: int = 0


def place_at(layout: CodeLayout, level: int, x: float, y: float) -> Place:
    """The place of the code that covers a point of a picture: a position of a level, at depth 0.

    Args:
        x, y: distances from the picture's left and top edge, as fractions of its width and height. Points outside
            [0, 1) get the nearest position.
    """
    grid = layout.levels[level]
    row, column = int(y * grid.height), int(x * grid.width)
    return Place(level, min(max(row, 0), grid.height - 1), min(max(column, 0), grid.width - 1))


def checked(layout: CodeLayout, place: Place) -> Place:
    """Returns `place` if the model has a code there.

    Raises:
        UserError: the model has no code there.
    """
    if not 0 <= place.level < len(layout.levels):
        raise UserError(f"level: expected a number from 1 to {len(layout.levels)}, got {place.level + 1}")
    grid = layout.levels[place.level]
    for name, value, count in (
        ("row", place.row, grid.height),
        ("column", place.column, grid.width),
        ("depth", place.depth, grid.depth),
    ):
        if not 0 <= value < count:
            raise UserError(f"{name}: expected a number from 1 to {count}, got {value + 1}")
    return place


def code_at(layout: CodeLayout, tokens: np.ndarray, place: Place) -> int:
    """The code that stands at `place` in an image's tokens, int64 (N,)."""
    return int(_grid(layout, tokens, place)[place.row, place.column, place.depth])


def size_at(layout: CodeLayout, place: Place) -> int:
    """The codebook size at `place`. Raises UserError: the model has no code there."""
    return layout.levels[checked(layout, place).level].depth_sizes[place.depth]


def with_code(layout: CodeLayout, tokens: np.ndarray, place: Place, code: int) -> np.ndarray:
    """A copy of an image's tokens, int64 (N,), with `code` at `place`.

    Raises:
        UserError: the codebook has no such code.
    """
    size = size_at(layout, place)
    if not 0 <= code < size:
        raise UserError(f"code: expected a number from 0 to {size - 1}, got {code}")
    grids = [grid.clone() for grid in layout.unflatten(torch.from_numpy(tokens)[None])]
    grids[place.level][0, place.row, place.column, place.depth] = code
    return layout.flatten(grids)[0].numpy()


def changes(before: np.ndarray, after: np.ndarray) -> int:
    """The number of indices at which the tokens (N,) of two images differ."""
    return int((before != after).sum())


def outlined(picture: np.ndarray, layout: CodeLayout, place: Place) -> np.ndarray:
    """A copy of a picture, uint8 (h, w, 3), with a frame around the part that a code stands for."""
    grid, (height, width) = layout.levels[place.level], picture.shape[:2]
    top, bottom = (round(edge * height / grid.height) for edge in (place.row, place.row + 1))
    left, right = (round(edge * width / grid.width) for edge in (place.column, place.column + 1))
    framed, thick = picture.copy(), max(1, min(height, width) // 128)
    for rows, columns in (
        (slice(top, top + thick), slice(left, right)),
        (slice(bottom - thick, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + thick)),
        (slice(top, bottom), slice(right - thick, right)),
    ):
        framed[rows, columns] = FRAME
    return framed


def _grid(layout: CodeLayout, tokens: np.ndarray, place: Place) -> np.ndarray:
    checked(layout, place)
    return layout.unflatten(torch.from_numpy(tokens)[None])[place.level][0].numpy()
