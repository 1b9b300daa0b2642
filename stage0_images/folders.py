"""Reads a plain folder of images, whose sub-folders may name splits and classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stage0_images.columns import SPLIT_NAMES
from stage0_images.parameters import DataParams
from tessera.errors import UserError

if TYPE_CHECKING:
    import datasets


def list_files(folder: Path) -> list[str]:
    """Lists all files below a folder, except hidden ones.

    Links to folders are followed. A folder that several links lead to is listed once.

    Returns:
        paths relative to the folder, with forward slashes, sorted.

    Raises:
        UserError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"data.source: {error.filename}: cannot be listed ({error.strerror})") from error

    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(place, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def plain_tables(folder: Path, files: list[str], params: DataParams) -> dict[str, datasets.Dataset]:
    """Makes tables of image files, one for each split.

    If a folder at the top has the name of a split, all folders at the top must be splits. Otherwise all images belong
    to the training split. The folders on the next level are the classes, sorted by name, if there are at least two.
    The builder `imagefolder` of `datasets` has the same rules.

    Args:
        folder: the folder.
        files: image files relative to the folder, with forward slashes.
        params: the parameters, of which `use_labels` and, for messages, `source` are used.

    Returns:
        the tables by the names of the split folders, or {"train": ...}. The column `image` holds paths, and the column
        `label` holds class labels, if there are classes.

    Raises:
        UserError: split folders lie beside other folders or images, or only some images lie in class folders.
    """
    import datasets

    split_names = _split_folders(files, params)
    class_of = _class_folders(files, 1 if split_names else 0, params)
    features = datasets.Features({"image": datasets.Image(decode=False)})
    number: dict[str, int] = {}
    if class_of is not None:
        classes = sorted(set(class_of.values()))
        number = {name: index for index, name in enumerate(classes)}
        features["label"] = datasets.ClassLabel(names=classes)
    tables = {}
    for split in split_names or ["train"]:
        own = [file for file in files if not split_names or file.startswith(f"{split}/")]
        columns: dict[str, list] = {"image": [{"bytes": None, "path": str(folder / file)} for file in own]}
        if class_of is not None:
            columns["label"] = [number[class_of[file]] for file in own]
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
    return tables


def _split_folders(files: list[str], params: DataParams) -> list[str]:
    """The folders at the top if they are splits, or an empty list. Raises UserError if only some are."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    tops = {file.partition("/")[0] if "/" in file else "" for file in files}
    splits = sorted(top for top in tops if top.lower() in known)
    if splits and len(splits) < len(tops):
        others = sorted(top or "images beside them" for top in tops.difference(splits))[:3]
        raise UserError(
            f"data.source: {params.source!r} mixes split folders ({', '.join(splits)}) with others "
            f"({', '.join(others)}); move everything below train, validation and test, or rename the split folders"
        )
    return splits


def _class_folders(files: list[str], depth: int, params: DataParams) -> dict[str, str] | None:
    """The class of each file, or None if there are no classes. Raises UserError if only some files have a class.

    Args:
        files: image files relative to the folder.
        depth: the number of folders above the class folders.
        params: the parameters, of which `use_labels` and, for messages, `source` are used.
    """
    found = {file: file.split("/")[depth] for file in files if file.count("/") > depth}
    names = sorted(set(found.values()))
    if not params.use_labels or len(names) < 2:
        return None
    if len(found) < len(files):
        stray = next(file for file in files if file not in found)
        raise UserError(
            f"data.source: {params.source!r}: some images lie in class folders ({', '.join(names[:3])}) and others do "
            f"not ({stray}); move them into class folders, or set data.use_labels: false"
        )
    return found
