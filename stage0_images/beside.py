"""Tells the user what lies in a folder beside the images that are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

import numpy as np

from stage0_images.columns import Aside, Source, shown, some_of

PARQUET = ".parquet"

Folder = tuple[str, ...]  # the name of a folder after those around it, outermost first


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
    return [f"{len(links)} symbolic links lead out of the folder and are followed, the first: {links[0]}"]


def about_folders(
    used: Mapping[Folder, Folder],
    images: Iterable[str],
    others: Iterable[str],
    classes: list[str] | None,
    splits: Collection[str],
) -> list[str]:
    """Names the folders without an image that lie beside class folders, or beside the only folder of images.

    Args:
        used: the folders of the images that are used, and the part of each from its class on.
        images: all image files.
        others: all other files.
        classes: the names of the classes. None: there are no labels.
        splits: the names of the folders of splits.
    """
    if not classes and any(used.values()):
        return []  # some images lie in a folder and others beside it: no folder is a class
    around = {folder[: len(folder) - len(rest)] for folder, rest in used.items()}
    if not classes:  # all images lie in one folder, or in one of each split
        around = {outer for folder in around for outer in _parents(folder, splits)}
    names = [
        shown("/".join(folder))
        for folder in sorted(_all_folders(others) - _all_folders(images))
        if folder[:-1] in around and folder[-1] not in (classes or ())
    ]
    if not names:
        return []
    where = f"the folder {names[0]}, so it is no class"
    if len(names) > 1:
        where = f"{len(names)} folders, so they are no classes: {some_of(names)}"
    left = "" if classes else "; with one folder left, there are no labels"
    return [f"no image can be read in {where}{left}; convert the images there to PNG or JPEG, if there are any"]


def _parents(folder: Folder, splits: Collection[str]) -> list[Folder]:
    """The folders around a folder, from its split on."""
    first = max((depth for depth, name in enumerate(folder, 1) if name in splits), default=0)
    return [folder[:depth] for depth in range(first, len(folder))]


def _all_folders(files: Iterable[str]) -> set[Folder]:
    """The folders of files, and the folders around these."""
    folders = {tuple(file.split("/")[:-1]) for file in files}
    return {path[:depth] for path in folders for depth in range(1, len(path) + 1)}
