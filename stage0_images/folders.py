"""A plain folder of images: its files, its split sub-folders, and the classes that its other sub-folders give."""

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
    """Every file below a folder: relative, sorted; hidden ones left out, links to folders followed, each once.

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
    """Image files as one dataset a split.

    If any top sub-folder has a split's name, all are splits; otherwise everything is `train`. Below that, the first
    sub-folders are the classes, in the order of their names, where there are at least two (as in `imagefolder`).

    Raises:
        UserError: split folders beside others, or images inside and outside of class folders.
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
    """Each file's class, or None where there are no classes."""
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
