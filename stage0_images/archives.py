"""Lists the images in zip archives as if they lay in a folder, and looks into tar archives. Nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import weakref
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from stage0_images.folders import SYSTEM, Listing, system_folder
from stage0_images.pixels import image_suffixes
from stage0_images.reading import BadImage, DiskFile, Header, SourceFile
from tessera.errors import UserError

# An archive's list of files is read at once. This is enough for two million names.
DIRECTORY_BYTES = 2**28
TAR_HEADERS = 1000  # files of a tar archive whose names are looked at
LABELS = (".cls", ".class", ".index", ".label", ".json", ".txt")  # endings of labels and captions in WebDataset shards


@dataclass(frozen=True)
class Member:
    """A file inside a zip archive, which is never unpacked to disk."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def opened(self) -> BinaryIO:
        try:
            return self.archive.open(self.info)
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise BadImage(f"cannot be unpacked: {str(error).split(' for ')[0]}") from error

    def size(self, file: BinaryIO) -> int:
        return self.info.file_size


class _Bounded(io.BufferedReader):
    """A file of which no more than `DIRECTORY_BYTES` are read at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of files has {size} bytes, and at most {DIRECTORY_BYTES} are read")
        return super().read(size)


def list_archive(path: Path, listing: Listing, name: str) -> None:
    """Adds the files in a zip archive to a listing, below a folder that stands for the archive.

    Files are left out as `list_files` leaves them out. Nothing is unpacked.

    Args:
        path: of the archive.
        listing: what is added to.
        name: of the folder that stands for the archive.

    Raises:
        UserError: the file is no readable archive, or one of its files has the name of another file in the listing.
    """
    try:
        with DiskFile(path).opened() as file:
            descriptor = os.dup(file.fileno())
        # The archive stays open as long as one of its files is known. Python warns of files that are left open.
        bounded = _Bounded(io.FileIO(descriptor, closefd=False))
        weakref.finalize(bounded, os.close, descriptor)
        archive = zipfile.ZipFile(bounded)
    except (OSError, BadImage, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"data.source: {path}: not a readable zip archive ({reason}); mend or remove it") from error
    system_folders: dict[str, None] = {}
    for info in archive.infolist():
        place = PurePosixPath(info.filename.replace("\\", "/"))
        parts = [name, *(part for part in place.parts if part not in ("/", ".."))]
        if info.is_dir() or len(parts) == 1 or any(part.startswith(".") for part in parts[1:]):
            continue
        system = next((depth for depth, part in enumerate(parts) if part.lower() in SYSTEM), None)
        if system is not None:
            system_folders["/".join(parts[: system + 1])] = None
            continue
        if (file := "/".join(parts)) in listing.files:
            raise UserError(
                f"data.source: {path}: its file {place} would be {file}, and there is another file of this name; "
                "unpack the archive, and give the unpacked folder"
            )
        listing.files[file] = Member(archive, info)
    listing.aside += map(system_folder, system_folders)


def is_packed_folder(file: SourceFile) -> bool:
    """Whether a tar archive has images in folders, and is no WebDataset shard. Only its first headers are read.

    A shard has images in no folder, or the label of an image in a file beside it: 000.cls has the label of 000.png.
    A file that is no readable tar archive gives False. `datasets` then says why it cannot be read.
    """
    paths = []
    # tarfile raises many kinds of errors on damaged files. The files before the damage count.
    with suppress(Exception), file.opened() as stream, tarfile.open(fileobj=Header(stream), mode="r:") as archive:
        for info in islice(archive, TAR_HEADERS):
            paths += [PurePosixPath(info.name.replace("\\", "/"))] if info.isfile() else []
    paths = [path for path in paths if not path.name.startswith(".")]
    images = [path for path in paths if path.suffix.lower() in image_suffixes()]
    labelled = {_key(path) for path in paths if path.suffix.lower() in LABELS}
    return any(len(path.parts) > 1 for path in images) and labelled.isdisjoint(map(_key, images))


def _key(path: PurePosixPath) -> PurePosixPath:
    """The part of a path that the files of one WebDataset sample share."""
    return path.parent / path.name.split(".")[0]
