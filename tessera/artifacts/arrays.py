"""Writes arrays that grow while they are written, and divides arrays into parts of a fixed number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


class ArrayWriter:
    """Appends blocks of rows to one .npy file of shape (n, *item_shape); n is known when the file is closed.

    The header of an .npy file leaves room for n to grow, so closing rewrites it in place.

    Args:
        path: the file; its folder is made if need be.
        item_shape: the shape of one row.
        dtype: the type on disk.
    """

    def __init__(self, path: Path, item_shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.item_shape, self.dtype, self.count = tuple(item_shape), np.dtype(dtype), 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.item_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

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
        self._write_header()
        self._file.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
