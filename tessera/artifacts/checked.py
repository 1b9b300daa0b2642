"""Reads arrays of published folders without loading them, and checks each block when it is first used."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.artifacts.arrays import array_parts
from tessera.artifacts.manifests import BLOCK, Manifest
from tessera.errors import UserError

OPEN_PARTS = 512  # parts of one array that are mapped at a time, at most


def parts_together() -> int:
    """How many parts of one array may be mapped at a time: a quarter of the files that a process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_PARTS if files == resource.RLIM_INFINITY else max(1, min(OPEN_PARTS, files // 4))


Rows = slice | int | np.integer | np.ndarray | Sequence[int]


class CheckedArray:
    """A read-only .npy array of a published folder, memory-mapped.

    Indexing gives what numpy gives for the same array. The first time that a row is used, the blocks of the file that
    hold it are compared with the manifest's hashes; later uses of these blocks cost nothing.

    Args:
        manifest: of the folder.
        name: the array's path relative to the folder.

    Attributes:
        shape, dtype: as numpy's.

    Raises:
        UserError: the file is missing, truncated or no plain .npy array, or its header is damaged. Indexing raises it
            for damaged contents, and for a file that was changed or truncated after it was opened.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        self.manifest, self.name, self.file = manifest, name, manifest.folder / name
        entry = manifest.files.get(name)
        self._hashes = (entry.blocks or (entry.sha256,)) if entry else ()
        self._checked = np.zeros(len(self._hashes), dtype=bool)
        self._unchecked = len(self._hashes)
        self._stamp: tuple[int, ...] | None = None
        self._map: mmap.mmap | None = None
        self._array: np.ndarray | None = None
        self._open_map()
        try:
            self._check_block(0)
            header = io.BytesIO(self._map[: 2**17])  # longer than any header of this version
            if np.lib.format.read_magic(header) != (1, 0):
                raise ValueError("not version 1.0 of the format")
            self.shape, fortran_order, self.dtype = np.lib.format.read_array_header_1_0(header)
            self._offset = header.tell()
            self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            if fortran_order or self.dtype.hasobject or not self.shape:
                raise ValueError("expected rows of plain numbers")
            if self._offset + len(self) * self._row_bytes != len(self._map):
                raise ValueError(f"its header says {self.shape}, which is not the size of the file")
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.file}: not a readable .npy array ({error}); {manifest.remedy}") from error
        self._view()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The given rows: by slice, number, or integer or bool array; or by a tuple that begins with one of these."""
        if self._array is None:
            self._open_map()
            self._view()
        if self._map.size() < len(self._map) or self._rewritten():  # reading past the end would kill the process
            raise self._changed()
        if self._unchecked:
            self._check_rows(rows[0] if isinstance(rows, tuple) else rows)
        return self._array[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)

    def close(self) -> None:
        """Free the file's descriptor and memory map. They are opened again when a row is used."""
        self._map = self._array = None

    def _open_map(self) -> None:
        try:
            descriptor = self.manifest.open(self.name)
        except UserError:
            if self._stamp is None:
                raise
            raise self._changed() from None  # it was there, and is gone or of another size: nothing is damaged
        try:
            status = os.fstat(descriptor)
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if self._stamp not in (None, stamp) or status.st_size != self.manifest.files[self.name].bytes:
                raise self._changed()
            if not status.st_size:
                raise UserError(f"{self.file}: not a readable .npy array (empty); {self.manifest.remedy}")
            self._stamp, self._map = stamp, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def _rewritten(self) -> bool:
        """Whether the file was written to since it was opened. One that another file has replaced was not."""
        try:
            now = os.stat(self.file)
        except OSError:
            return False
        device, number, *written = self._stamp
        return (now.st_dev, now.st_ino) == (device, number) and [now.st_size, now.st_mtime_ns] != written

    def _view(self) -> None:
        values = np.frombuffer(self._map, self.dtype, offset=self._offset) if len(self) * self._row_bytes else []
        self._array = np.asarray(values, dtype=self.dtype).reshape(self.shape)

    def _changed(self) -> UserError:
        return UserError(f"{self.file}: changed while it was being read; run this stage again")

    def _check_rows(self, rows: Any) -> None:
        """Compare all blocks that hold the given rows with their hashes, unless that was done before."""
        if rows is None or rows is Ellipsis:
            rows = slice(None)
        if isinstance(rows, slice):
            chosen = range(len(self))[rows]
            if not chosen:
                return
            first, last = sorted((chosen[0], chosen[-1]))
            self._check_blocks(np.arange(self._block(first, 0), self._block(last, 1) + 1))
            return
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.ravel()
        index = index[(index >= -len(self)) & (index < len(self))] % max(1, len(self))  # numpy refuses the others
        first, last = self._block(index, 0), self._block(index, 1)
        # A row in the middle of the file may fill many blocks, so every block between its first and its last counts.
        for distance in range(int((last - first).max(initial=-1)) + 1):
            self._check_blocks(np.minimum(first + distance, last))

    def _block(self, row: Any, end: int) -> Any:
        """The block that holds the first byte (`end` 0) or the last byte (`end` 1) of a row, or of each row."""
        return (self._offset + (row + end) * self._row_bytes - end) // BLOCK

    def _check_blocks(self, blocks: np.ndarray) -> None:
        for block in np.unique(blocks[~self._checked[blocks]]):
            self._check_block(int(block))

    def _check_block(self, block: int) -> None:
        start = block * BLOCK
        stop = min(start + BLOCK, len(self._map))
        with memoryview(self._map) as data, data[start:stop] as part:
            found = hashlib.sha256(part).hexdigest()
        if found != self._hashes[block]:
            raise UserError(
                f"{self.file}: bytes {start} to {stop} differ from the manifest's SHA-256 (damaged or edited); "
                f"{self.manifest.remedy}"
            )
        if not self._checked[block]:
            self._checked[block] = True
            self._unchecked -= 1


class PartedArray:
    """Arrays one after the other, read as one array (n, *item_shape).

    Rows are given by a slice, a number, or an array of integers of any shape. The result is a new array.

    Args:
        parts: at least one, all of one item shape and dtype.
    """

    def __init__(self, parts: Sequence[CheckedArray]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.shape = (int(self._starts[-1]), *self.parts[0].shape[1:])
        self.dtype = self.parts[0].dtype
        self._together = parts_together()
        self._open: OrderedDict[int, None] = OrderedDict()  # numbers of the parts that are mapped, oldest use first

    def __len__(self) -> int:
        return self.shape[0]

    def _part(self, number: int) -> CheckedArray:
        """A part. No more of them than `parts_together` says stay mapped."""
        self._open[number] = None
        self._open.move_to_end(number)
        if len(self._open) > self._together:
            self.parts[self._open.popitem(last=False)[0]].close()
        return self.parts[number]

    def __getitem__(self, rows: Rows) -> np.ndarray:
        if isinstance(rows, slice):
            chosen = range(len(self))[rows]
            if chosen.step == 1:
                return self._between(chosen.start, chosen.stop)
            rows = np.arange(chosen.start, chosen.stop, chosen.step)
        index = np.asarray(rows)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        flat = index.ravel()
        if flat.size and (flat.min() < -len(self) or flat.max() >= len(self)):
            raise IndexError(f"rows from {flat.min()} to {flat.max()} of an array of {len(self)} rows")
        flat = np.where(flat < 0, flat + len(self), flat).astype(np.int64)
        return self._rows(flat).reshape(*index.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)

    def _between(self, start: int, stop: int) -> np.ndarray:
        found = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for number in range(first, len(self.parts)):
            begin, end = int(self._starts[number]), int(self._starts[number + 1])
            if begin >= stop:
                break
            low, high = max(start, begin), min(stop, end)
            found[low - start : high - start] = self._part(number)[low - begin : high - begin]
        return found

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        if len(self.parts) == 1 or not len(rows):
            return self._part(0)[rows]
        order = np.argsort(rows)  # rows of one part stand together
        rows = rows[order]
        ends = np.searchsorted(rows, self._starts).tolist()
        found, begin = np.empty((len(rows), *self.shape[1:]), self.dtype), 0
        for number, end in enumerate(ends[1:]):
            if end > begin:
                found[begin:end] = self._part(number)[rows[begin:end] - self._starts[number]]
                begin = end
        result = np.empty_like(found)
        result[order] = found
        return result


def open_parts(manifest: Manifest, folder: str, stem: str, rows: int, part_rows: int) -> list[CheckedArray]:
    """The parts of an array (`tessera.artifacts.arrays.array_parts`), opened.

    Args:
        folder, stem: where the parts are, relative to the manifest's folder, and the first part of their names.
        rows, part_rows: of the whole array, and of each part but the last.

    Raises:
        UserError: see `CheckedArray`; or a part has another number of rows.
    """
    parts = []
    for wanted in array_parts(folder, stem, rows, part_rows):
        part, expected = CheckedArray(manifest, wanted.name), wanted.rows.stop - wanted.rows.start
        if len(part) != expected:
            raise UserError(f"{part.file}: {len(part)} rows instead of {expected}; {manifest.remedy}")
        part.close()
        parts.append(part)
    return parts
