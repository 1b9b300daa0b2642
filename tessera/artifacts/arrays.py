"""Writes arrays that grow while they are written, and divides arrays into parts of a fixed number of rows."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MOVED_AT_ONCE = 2**24  # bytes


class ArrayWriter:
    """Appends blocks of rows to one .npy file of shape (n, *item_shape); n is known when the file is closed.

    The header of an .npy file leaves room for n to grow, so closing rewrites it in place.

    Several processes may write one file: each writes from a row of its own on, and `join_pieces` then makes one array
    of what they wrote.

    Args:
        path: the file; its folder is made if need be.
        item_shape: the shape of one row.
        dtype: the type on disk.
        start: None for a new file. A row: the rows are written into a file that is there, from this row on, and its
            header stays as it is.
    """

    def __init__(
        self, path: Path, item_shape: tuple[int, ...], dtype: np.dtype | type, start: int | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.item_shape, self.dtype, self.count = tuple(item_shape), np.dtype(dtype), 0
        self._owns_header = start is None
        self._file = path.open("wb" if self._owns_header else "r+b")
        self._write_header()
        if start:
            self._file.seek(start * self.dtype.itemsize * math.prod(self.item_shape), os.SEEK_CUR)

    def _write_header(self) -> None:
        self._file.seek(0)
        if self._owns_header:
            self._file.write(_header(self.count, self.item_shape, self.dtype))
        else:
            self._file.seek(len(_header(0, self.item_shape, self.dtype)))

    def append(self, block: np.ndarray) -> None:
        """Append a block (m, *item_shape).

        Raises:
            ValueError: the rows have another shape, or hold whole numbers that the dtype cannot hold.
        """
        if block.shape[1:] != self.item_shape:
            raise ValueError(f"expected items of shape {self.item_shape}, got {block.shape[1:]}")
        if self.dtype.kind in "iu" and block.size:
            low, high = block.min(), block.max()
            if low < np.iinfo(self.dtype).min or high > np.iinfo(self.dtype).max:
                raise ValueError(f"values from {low} to {high} do not fit {self.dtype}")
        self._file.write(np.ascontiguousarray(block, dtype=self.dtype).tobytes())
        self.count += len(block)

    def close(self) -> None:
        try:
            if self._owns_header:
                self._write_header()
        finally:  # on a full disk the header cannot be written either
            self._file.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _header(count: int, item_shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of an .npy file; its length does not depend on `count`."""
    file = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *item_shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def join_pieces(path: Path, item_shape: tuple[int, ...], dtype: np.dtype | type, pieces: Iterable[slice]) -> None:
    """Make one array of the pieces of a file that several processes wrote, by moving them together in the file.

    Args:
        item_shape, dtype: of the array.
        pieces: the rows that were written, in ascending order. What lies between them is dropped.
    """
    dtype, count = np.dtype(dtype), 0
    begin, row = len(_header(0, item_shape, dtype)), dtype.itemsize * math.prod(item_shape)
    with path.open("r+b") as file:
        for piece in pieces:
            source, left = begin + piece.start * row, (piece.stop - piece.start) * row
            target, count = begin + count * row, count + piece.stop - piece.start
            while left and source != target:
                file.seek(source)
                data = file.read(min(left, MOVED_AT_ONCE))
                file.seek(target)
                file.write(data)
                source, target, left = source + len(data), target + len(data), left - len(data)
        file.truncate(begin + count * row)
        file.seek(0)
        file.write(_header(count, item_shape, dtype))


def part_name(stem: str, number: int) -> str:
    """The name of one part of an array: codes-00000.npy is the first part of `codes`."""
    return f"{stem}-{number:05d}.npy"


def part_count(rows: int, part_rows: int) -> int:
    """The number of parts of an array; an empty array has one, which holds its row's shape and its dtype."""
    return max(1, -(-rows // part_rows))


@dataclass(frozen=True)
class ArrayPart:
    """One part of an array.

    Attributes:
        name: the part's file, relative to the folder of the whole artifact.
        rows: the rows of the array that it holds.
    """

    name: str
    rows: slice


def array_parts(folder: str, stem: str, rows: int, part_rows: int) -> list[ArrayPart]:
    """The parts of an array of `rows` rows, in order: FOLDER/STEM-00000.npy, FOLDER/STEM-00001.npy, ...

    Every part but the last has `part_rows` rows.

    Args:
        folder: relative to the folder of the whole artifact.
    """
    starts = [number * part_rows for number in range(part_count(rows, part_rows))]
    return [
        ArrayPart(f"{folder}/{part_name(stem, number)}", slice(start, min(start + part_rows, rows)))
        for number, start in enumerate(starts)
    ]
