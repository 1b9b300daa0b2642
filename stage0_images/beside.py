"""Tells the user what lies in a folder beside the images that are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from stage0_images.columns import Aside, Source, shown, some_of

PARQUET = ".parquet"
# Endings of pictures in formats that are not read, or not by every build of Pillow.
PICTURES = (".heic", ".heif", ".hif", ".jxl", ".avif", ".jp2", ".svg", ".psd", ".tga", ".dcm")
PICTURES += (".raw", ".dng", ".arw", ".cr2", ".cr3", ".nef")  # of cameras


def ending(file: str) -> str:
    """The ending of a file's name, in lower case, with the dot."""
    return PurePosixPath(file).suffix.lower()


def skipped(file: str) -> Aside:
    """A file that is no image, as far as can be told."""
    return Aside(shown(file), _kind(file), "not an image in a format that is read")


def _kind(file: str) -> str:
    """What a file is counted as."""
    return shown(ending(file)) or "without an ending"


def beside_parquet(source: Source, files: Iterable[str]) -> list[Aside]:
    """The files beside parquet files, if these hold the images. Left out are those that describe a dataset."""
    first = [image.content for split in source.splits.values() for image in split.fetch(np.arange(split.count)[:1])]
    if not all(isinstance(content, bytes) for content in first):
        return []
    unread = [file for file in files if ending(file) != PARQUET and not _describes(PurePosixPath(file).name)]
    return [Aside(shown(n), f"{_kind(n)} beside parquet", "the parquet files hold the images") for n in unread]


def _describes(name: str) -> bool:
    """Whether a file is one of those that a dataset on the Hub has about itself, by its name."""
    return name == "README.md" or name.startswith("LICENSE") or ending(name) == ".json"


def about_links(links: list[str]) -> list[str]:
    """Tells how many symbolic links lead out of the folder."""
    if not links:
        return []
    return [f"symbolic links that lead out of the folder are followed: {len(links)}, the first: {links[0]}"]


def about_folders(images: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names the outermost folders in which no file is an image, but some file may be a picture in another format.

    Args:
        images: all image files.
        others: all other files.
    """
    used = {folder for file in images for folder in _folders(file)}
    outermost = (
        next((folder for folder in _folders(file) if folder not in used), None)
        for file in others
        if ending(file) in PICTURES
    )
    names = sorted({shown(folder) for folder in outermost if folder is not None})
    if not names:
        return []
    where = f"the folder {names[0]}" if len(names) == 1 else f"{len(names)} folders ({some_of(names)})"
    return [f"no image can be read in {where}; convert the pictures there to PNG or JPEG, or they are not used"]


def _folders(file: str) -> list[str]:
    """The folders around a file, outermost first."""
    return [str(folder) for folder in reversed(PurePosixPath(file).parents)][1:]
