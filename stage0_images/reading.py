"""Reads the files of an image source: regular files only, inside the source's folder, of a bounded size.

Memory is bounded over all threads together. Rows of tables are held in memory only within `FETCHED`, a file only within
`READING`, and pixels only within `DECODING`: a thread waits while the others hold too much.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

HEADER_BYTES = 2**25  # the most that is read of a file to see whether it is an image, or what lies in a tar archive
OUTSIDE = "names a file outside the source's folder; only files inside it are read"


class BadImage(ValueError):
    """An image cannot be used. The message is the reason, in one line that names nothing of this machine."""


class Budget:
    """An amount of memory that threads share.

    Args:
        size: bytes that may be held at a time. A larger piece is let in alone.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Hold some bytes, after waiting until they are free."""
        amount = min(amount, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


# Whoever holds a part of one budget waits for a part of a later one only, never of an earlier one, so that no two
# threads wait for each other. FETCHED is a budget of its own, since a row of a table may name a file besides.
FETCHED, READING, DECODING = Budget(2**29), Budget(2**29), Budget(2**31)


class SourceFile(Protocol):
    """A file that holds an encoded image."""

    def opened(self) -> BinaryIO:
        """The file, opened for reading. Raises BadImage or OSError."""

    def size(self, file: BinaryIO) -> int:
        """The number of bytes of the opened file."""


@dataclass(frozen=True)
class DiskFile:
    """A file on disk.

    Attributes:
        path: its path.
        inside: folders, in one of which the file must lie after symbolic links are followed. None: anywhere.
    """

    path: Path
    inside: tuple[Path, ...] | None = None

    def opened(self) -> BinaryIO:
        place = self.path
        if self.inside is not None:
            place = Path(os.path.realpath(place))
            if not any(place.is_relative_to(os.path.realpath(folder)) for folder in self.inside):
                raise BadImage(OUTSIDE)
        # A pipe that nobody writes to would block for ever without O_NONBLOCK.
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadImage("not a regular file")
        return os.fdopen(descriptor, "rb")

    def size(self, file: BinaryIO) -> int:
        return os.fstat(file.fileno()).st_size


class Header:
    """A file of which at most `HEADER_BYTES` are read in all. Pillow and tarfile would hold a chunk of any length."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._left = file, HEADER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes. Raises BadImage if they are too many."""
        most = self._left + 1
        data = self._file.read(most if size < 0 else min(size, most))
        self._left -= len(data)
        if self._left < 0:
            self._left = 0
            raise BadImage(f"its header has more than the {HEADER_BYTES} bytes that are read")
        return data


@contextmanager
def encoded(content: bytes | Path | SourceFile | None, limit: int) -> Iterator[bytes]:
    """Read an encoded image, and hold its memory until the context ends.

    Args:
        content: the bytes themselves, a path, a file of a source, or None for a missing image.
        limit: the largest size accepted, in bytes. A larger file is not read.

    Raises:
        BadImage: there is no image, or it is empty, too large, unreadable, no regular file, or outside its source.
    """
    if isinstance(content, Path):
        content = DiskFile(content)
    if content is None:
        raise BadImage("no image (null)")
    if isinstance(content, bytes):
        yield _fitting(content, len(content), limit)
        return
    try:
        with content.opened() as file:
            size = content.size(file)
            _refuse_large(size, limit)
            with READING.holding(size):
                data = _fitting(file.read(size + 1), size, limit)
                file.close()
                yield data
    except OSError as error:
        raise BadImage(f"unreadable file: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadImage("cannot be unpacked: damaged") from error


def _refuse_large(size: int, limit: int) -> None:
    if size > limit:
        raise BadImage(f"a file of {size} bytes, over the {limit} that are read")


def _fitting(data: bytes, size: int, limit: int) -> bytes:
    """The bytes of a file, if they are as many as its size said, and not too many or none. Raises BadImage."""
    _refuse_large(size, limit)
    if not data:
        raise BadImage("empty file (0 bytes)")
    if len(data) != size:
        raise BadImage("changed while it was read")
    return data
