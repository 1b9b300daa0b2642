"""Arrays on disk that grow while they are written and are read without being loaded: .npy, memory-mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tessera.errors import UserError


class ArrayWriter:
    """Append blocks to an .npy file of shape (n, *item_shape) whose n is known only at the end.

    The header leaves room for n to grow, so closing rewrites it in place.
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
            ValueError: items of another shape, or whole numbers that the dtype cannot hold.
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


def open_array(path: Path) -> np.ndarray:
    """Memory-map an .npy file, read only. A pickled (object) array is refused.

    Raises:
        UserError: the file is not a plain .npy array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy array ({error})") from error
