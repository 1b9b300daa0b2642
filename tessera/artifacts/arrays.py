"""Writes arrays that grow while they are written: as one .npy file, or as parts of a fixed number of rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tessera.artifacts.files import flush


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


class PartWriter:
    """Appends blocks of rows to an array in parts: FOLDER/STEM-00000.npy, FOLDER/STEM-00001.npy, ...

    Every part but the last has `part_rows` rows. The same rows give the same files, whatever the size of the blocks.

    A part is written under another name, flushed to disk, and put in place by one rename. Parts are put in place in
    order, so every part in place is complete and none before it is missing. A program that resumes in a folder that a
    killed process left counts the parts in place, goes on at row `parts * part_rows`, and overwrites what is
    unfinished. The folder's manifest is written last, so a reader never meets a folder that lacks parts.

    Args:
        folder: made if need be.
        stem: the first part of the files' names.
        item_shape: the shape of one row.
        dtype: the type on disk.
        part_rows: rows a part.
    """

    def __init__(
        self, folder: Path, stem: str, item_shape: tuple[int, ...], dtype: np.dtype | type, part_rows: int
    ) -> None:
        self.folder, self.stem, self.part_rows = folder, stem, part_rows
        self.item_shape, self.dtype, self.parts = item_shape, dtype, 0
        self._begin()

    def _begin(self) -> None:
        self._path = self.folder / part_name(self.stem, self.parts)
        self._unfinished = self._path.with_name(f".{self._path.name}.new")
        self._writer = ArrayWriter(self._unfinished, self.item_shape, self.dtype)

    def _put_in_place(self) -> None:
        self._writer.close()
        flush(self._unfinished)
        os.replace(self._unfinished, self._path)
        self.parts += 1

    def append(self, block: np.ndarray) -> None:
        """Append a block (m, *item_shape). Raises `ValueError`: see `ArrayWriter.append`."""
        while len(block):
            if self._writer.count == self.part_rows:
                self._put_in_place()
                self._begin()
            room = self.part_rows - self._writer.count
            self._writer.append(block[:room])
            block = block[room:]

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Put the last part in place; after an exception delete it, since it may lack rows."""
        if kind is None:
            self._put_in_place()
        else:
            self._writer.close()
            self._unfinished.unlink(missing_ok=True)
