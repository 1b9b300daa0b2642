"""Reads a plain folder of images, whose sub-folders may name splits and classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from stage0_images.columns import Aside, Source, SourceImage, SourceSplit, shown
from stage0_images.parameters import DataParams
from stage0_images.reading import DiskFile, SourceFile
from stage0_images.splits import choose_splits, is_split, split_of
from tessera.errors import UserError

# Folders that operating systems and network drives make beside a user's own, in lower case.
SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found")

Folders = dict[str, tuple[str, ...]]  # the folders around each file, outermost first, by the file's name


@dataclass
class Listing:
    """What lies in a folder and in the folders inside it. All paths are relative to the folder, with forward slashes.

    Attributes:
        files: regular files by their paths, sorted. Hidden files and all that lies in hidden folders are left out.
        aside: one entry for each folder of the operating system, and one for each path of `odd`. None of them is read.
        odd: paths of the pipes, sockets and devices, those whose names begin with a dot included.
        links: paths of the symbolic links that lead out of the folder, hidden ones left out. The links are followed.
    """

    files: dict[str, SourceFile] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


def list_files(folder: Path) -> Listing:
    """Lists all files below a folder, except hidden ones and those in hidden folders and folders of the system.

    Links to files and folders are followed. A folder that several links lead to is listed once.

    Raises:
        UserError: a folder cannot be listed, or a link leads to a folder around this one.
    """
    listing, root, seen = Listing(), os.path.realpath(folder), set[str]()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        place = os.path.join(folder, inside)
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"data.source: {place}: cannot be listed ({error.strerror})") from error
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_symlink() and not entry.name.startswith("."):
                _note_link(entry, name, root, listing)
            if entry.is_dir():
                if entry.name.lower() in SYSTEM:
                    listing.aside.append(system_folder(name))
                elif not entry.name.startswith("."):
                    waiting.append(name)
            elif not entry.is_file() and os.path.exists(entry.path):
                listing.odd.append(name)
                listing.aside.append(Aside(shown(name), "pipe or device", "a pipe, a socket or a device"))
            elif not entry.name.startswith("."):
                listing.files[name] = DiskFile(Path(entry.path))
    listing.files = dict(sorted(listing.files.items()))
    return listing


def system_folder(name: str) -> Aside:
    """A folder of the operating system, by its path relative to the source."""
    kind = shown(f"{name.rsplit('/', 1)[-1]} (system folder)")
    return Aside(shown(name), kind, "a folder of the operating system")


def _note_link(entry: os.DirEntry, name: str, root: str, listing: Listing) -> None:
    """Notes a symbolic link that leads out of the folder. Raises UserError for one to a folder around it."""
    target = os.path.realpath(entry.path)
    if Path(root).is_relative_to(target) and target != root:
        raise UserError(
            f"data.source: {entry.path}: a symbolic link to {target}, in which the source itself lies; remove the link"
        )
    if not Path(target).is_relative_to(root):
        listing.links.append(name)


def plain_source(files: Mapping[str, SourceFile], params: DataParams) -> Source:
    """Finds splits and classes by the folders around image files.

    A single folder around everything is skipped. If the folders then found at the top are splits by their names
    (`stage0_images.splits`), these are the splits. Otherwise all images belong to the training split. The folders on
    the next level are the classes, sorted by name, if there are at least two; again a single folder is skipped.
    A validation or test split without class folders is left aside if there are classes.

    Args:
        files: image files by their paths relative to the folder, with forward slashes, sorted.
        params: the parameters, of which those about columns and labels and, for messages, `source` are used.

    Raises:
        UserError: split folders lie beside other folders or images, or inside them; there is no training split; or only
            some images of a split lie in class folders.
    """
    groups, chosen, unused = _split(list(files), params)
    groups = _without_wrappers(groups)
    classes = _classes(groups) if params.use_labels else None
    if classes:
        for split in ("validation", "test"):
            if split in groups and not any(groups[split].values()):
                del groups[split]
                unused.append(f"{chosen[split]} (no labels)")
        _refuse_strays(groups, classes, params)
    splits = {}
    for split, group in groups.items():
        own = sorted(group)
        labels = np.array([classes.index(group[file][0]) for file in own], np.int64) if classes else None
        splits[split] = SourceSplit(chosen[split], len(own), labels, partial(_fetch, files, own))
    named = [(name, getattr(params, name)) for name in ("image_column", "label_column")]
    notes = [f"data.{name}: {value!r} is not used: images are files, not table rows" for name, value in named if value]
    return Source(splits, classes and tuple(map(shown, classes)), tuple(unused), notes=tuple(notes))


def split_files(files: list[str], params: DataParams) -> dict[str, list[str]]:
    """The image files of each split, sorted. Keys are the names of splits: train, validation and test, as far as found.

    Files belong to the split whose folder they are in, see `plain_source`, which also says what raises a UserError."""
    return {split: sorted(group) for split, group in _split(files, params)[0].items()}


def _split(files: list[str], params: DataParams) -> tuple[dict[str, Folders], dict[str, str], list[str]]:
    """Divides files into splits by the folders at the top.

    Returns:
        by the standard name of each split its files, with the folders inside the split, and the name of its folder;
        and the names of folders of splits that are not used.

    Raises:
        UserError: see `plain_source`.
    """
    parts = _unwrapped({file: tuple(file.split("/")[:-1]) for file in files}, is_split)
    tops = {rest[0] if rest else "" for rest in parts.values()}
    if not _are_splits(tops, params):
        _refuse_splits_inside(set(parts.values()), params)
        return {"train": parts}, {"train": "train"}, []
    chosen = choose_splits(tops, params.source)
    groups = {
        split: {file: rest[1:] for file, rest in parts.items() if rest[0] == name} for split, name in chosen.items()
    }
    return groups, chosen, sorted(tops.difference(chosen.values()))


def _fetch(files: Mapping[str, SourceFile], names: list[str], rows: np.ndarray) -> list[SourceImage]:
    """Names the files of rows; they are read when they are decoded."""
    return [SourceImage(files[names[row]], shown(names[row])) for row in rows]


def _unwrapped(parts: Folders, keep: Callable[[str], bool] = lambda name: False) -> Folders:
    """The folders without those that stand alone around all files; from a name that `keep` holds for on, all stay."""
    while True:
        tops = {rest[0] if rest else None for rest in parts.values()}
        if len(tops) != 1 or None in tops or keep(next(iter(tops))):
            return parts
        parts = {file: rest[1:] for file, rest in parts.items()}


def _without_wrappers(groups: dict[str, Folders]) -> dict[str, Folders]:
    """The folders of each split without single ones around the classes, such as train/images/ and test/images/.

    A split's only folder stays if it may be a class: if other splits have it too beside others, or if it holds the
    images themselves and is not called like a split.
    """
    together = _unwrapped({file: rest for group in groups.values() for file, rest in group.items()})
    groups = {split: {file: together[file] for file in group} for split, group in groups.items()}
    for split, group in groups.items():
        others = {rest[0] for name, other in groups.items() if name != split for rest in other.values() if rest}
        while len(groups) > 1 and _wraps(group, others):
            group = groups[split] = {file: rest[1:] for file, rest in group.items()}
    return groups


def _wraps(group: Folders, others: set[str]) -> bool:
    """Whether all files of a split lie in one folder that is no class; `others`: the folders in other splits."""
    tops = {rest[0] if rest else None for rest in group.values()}
    only = next(iter(tops))
    if len(tops) > 1 or only is None or only in others:
        return False
    return split_of(only) is not None or min(map(len, group.values())) > 1


def _are_splits(tops: set[str], params: DataParams) -> bool:
    """Whether the folders at the top are splits.

    One that is called just "train" or "test" decides it. Words around these names may also be those of a class ("toy
    train"), so such folders are splits only if there are two kinds of them.

    Raises:
        UserError: they are splits, but others, or images, lie beside them; or it cannot be told.
    """
    kinds = {top: split_of(top) for top in tops if split_of(top) is not None}
    certain = any(is_split(top) for top in tops) or len(set(kinds.values())) > 1
    if not certain and len(kinds) == len(tops) > 1:
        raise UserError(
            f"data.source: {params.source!r} has only folders named after one split ({', '.join(sorted(kinds)[:3])}); "
            "if they are classes, put them below a folder train; if they are parts of a split, put their images into "
            "one folder"
        )
    if certain and len(kinds) < len(tops):
        others = sorted(shown(top) or "images beside them" for top in tops.difference(kinds))[:3]
        raise UserError(
            f"data.source: {params.source!r} mixes split folders ({', '.join(sorted(kinds))}) with others "
            f"({', '.join(others)}); move everything below train, validation and test, or rename the split folders"
        )
    return certain


def _refuse_splits_inside(folders: set[tuple[str, ...]], params: DataParams) -> None:
    """Refuses folders of splits inside other folders, such as cat/train and cat/test: all would be training images.

    Raises:
        UserError: there are folders for two splits or more.
    """
    inside = {name.lower(): "/".join(rest) for rest in sorted(folders, reverse=True) for name in rest if is_split(name)}
    if len({split_of(name) for name in inside}) > 1:
        raise UserError(
            f"data.source: {params.source!r} has split folders inside other folders "
            f"({', '.join(shown(place) for place in sorted(inside.values())[:3])}), so that all would be training "
            "images; let the splits be the outermost folders, as in train/cat and test/cat"
        )


def _classes(groups: dict[str, Folders]) -> list[str] | None:
    """The sorted names of the class folders, or None if there are fewer than two."""
    names = sorted({rest[0] for group in groups.values() for rest in group.values() if rest})
    return names if len(names) > 1 else None


def _refuse_strays(groups: dict[str, Folders], classes: list[str], params: DataParams) -> None:
    """Refuses images outside the class folders, by a UserError."""
    stray = next((file for group in groups.values() for file, rest in sorted(group.items()) if not rest), None)
    if stray is not None:
        raise UserError(
            f"data.source: {params.source!r}: some images lie in class folders "
            f"({', '.join(map(shown, classes[:3]))}) and others do not ({shown(stray)}); move them into class folders, "
            "or set data.use_labels: false"
        )
