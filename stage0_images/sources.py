"""Opens the source of images that `data.source` names.

A source is scikit-learn's digits, a dataset on the Hugging Face Hub, a local folder in the Hub's layout, a folder
written by `save_to_disk`, or a plain folder of images. The Hub's layout and saved datasets are opened by `datasets`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images import metadata
from stage0_images.archives import is_packed_folder, list_archive
from stage0_images.beside import PARQUET, about_folders, about_links, beside_parquet, ending, skipped
from stage0_images.columns import Place, Source, SourceImage, SourceSplit, from_tables, shown, some_of
from stage0_images.folders import Listing, list_files, plain_source, split_files
from stage0_images.labels import label_faults
from stage0_images.parameters import DataParams
from stage0_images.pixels import image_suffixes, is_image
from stage0_images.places import check_places
from stage0_images.reading import SourceFile
from tessera.documents import read_json
from tessera.errors import UserError, printable
from tessera.explained import no_space

if TYPE_CHECKING:
    import datasets

# In the Hub's layout, images lie in parquet files or in files with the endings `ARCHIVES`.
ZIP, TAR = ".zip", ".tar"
ARCHIVES = (".arrow", TAR, ".json", ".jsonl", ".csv")
PACKED = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz")  # endings of archives that the user must unpack


def open_source(params: DataParams, cache: Path) -> Source:
    """Opens the source that the parameters name.

    Args:
        params: the section `data` of params.yaml.
        cache: an existing folder, in which `datasets` unpacks a local source. Keep it while images are fetched.

    Raises:
        UserError: the source is missing, empty, unreadable or ambiguous, or `data.watch` does not match it.
    """
    folder = check_places(params)
    if params.source == "digits":
        return _digits(params)
    source = _hub(params) if folder is None else _local(folder, params, cache)
    return replace(source, unused=tuple(map(shown, source.unused)), notes=tuple(map(printable, source.notes)))


def _digits(params: DataParams) -> Source:
    """Opens scikit-learn's 1,797 handwritten digits of 8x8 pixels, as one training split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16

    def fetch(rows: np.ndarray) -> list[SourceImage]:
        return [SourceImage(pixels[row], None) for row in rows]

    labels = bunch.target.astype(np.int64) if params.use_labels else None
    classes = tuple(str(name) for name in bunch.target_names) if params.use_labels else None
    return Source({"train": SourceSplit("train", len(pixels), labels, fetch)}, classes)


def _hub(params: DataParams) -> Source:
    """Opens a dataset on the Hub. Rows without bytes must name files that were downloaded for it. Raises UserError."""
    tables, unpacked = _load(params, None, path=params.source, revision=params.revision)
    return from_tables(tables, params, Place((hub_folder(params.source), *unpacked)))


def hub_folder(name: str) -> Path:
    """The folder into which the files of a dataset on the Hub are downloaded."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))


def _local(folder: Path, params: DataParams, cache: Path) -> Source:
    """Opens a local folder, whose kind is told by its files. Raises UserError."""
    listing = list_files(folder)
    files, aside = listing.files, listing.aside
    if not files:
        raise UserError(f"data.source: {params.source!r} is an empty folder; put images there")
    tables, place = set(metadata.files_of(files)), Place((folder,), folder)
    saved = "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files)
    if saved or any(ending(file) == PARQUET for file in files):
        opened = _saved(folder, listing, params) if saved else _tables(folder, listing, params, cache)
        source = from_tables(opened, params, place)
        return replace(source, aside=(*aside, *([] if saved else beside_parquet(source, files))))
    images = _images(files, tables)
    if not images and (archives := [file for file in files if ending(file) == ZIP]):
        zipped = Listing({file: content for file, content in files.items() if ending(file) != ZIP}, aside)
        for one in archives:
            list_archive(folder / one, zipped, one[: -len(ZIP)])
        files = dict(sorted(zipped.files.items()))
        tables = set(metadata.files_of(files))
        images = _images(files, tables)
    if not images:
        _refuse_archives(listing.files, files, params)
        return from_tables(_tables(folder, listing, params, cache), params, place)
    others = [file for file in files if file not in images and file not in tables]
    aside += map(skipped, others)
    source = _described(files, images, params, place, about_folders(images, others))
    notes = (*about_links(listing.links), *source.notes)
    return replace(source, aside=(*aside, *source.aside), notes=notes)


def _described(
    files: dict[str, SourceFile], images: dict[str, SourceFile], params: DataParams, place: Place, notes: list[str]
) -> Source:
    """Opens images whose labels are in metadata files, or in class folders if the files give no labels.

    Args:
        files: all files of the folder.
        images: the image files among them.
        params: the section `data` of params.yaml.
        place: the folder.
        notes: what to tell the user besides.
    """
    described = metadata.read(files, images, params)
    notes = [*notes, *described.notes]
    if described.rows is None:
        return _by_folders(images, params, notes)
    opened, unnamed = metadata.tables(described.rows, split_files(list(images), params))
    faults, columns, wanted = label_faults(opened["train"]), described.rows.column_names, params.label_column
    if wanted not in columns and None not in faults.values():
        named = some_of(list(map(shown, sorted(metadata.files_of(files)))))
        why = [f"column {name!r} {fault}" for name, fault in faults.items()]
        why += [] if wanted is None else [f"it has no column {wanted!r} (its columns: {', '.join(columns[1:])})"]
        folders = _by_folders(images, params, [*notes, f"{named}: not used, since {'; '.join(why)}"])
        if folders.classes is not None:
            return folders
    source = from_tables(opened, params, replace(place, files=images))
    return replace(source, aside=tuple(unnamed), notes=(*notes, *source.notes))


def _by_folders(images: dict[str, SourceFile], params: DataParams, notes: list[str]) -> Source:
    """Opens images by their folders. The notes say what is not used, and why. An error has them, too."""
    try:
        source = plain_source(images, params)
    except UserError as error:
        raise UserError("; ".join([str(error), *map(printable, notes)])) from error
    return replace(source, notes=(*notes, *source.notes))


def _images(files: dict[str, SourceFile], tables: set[str]) -> dict[str, SourceFile]:
    """The files that are images by their endings, or by their contents."""
    endings = image_suffixes()
    return {n: file for n, file in files.items() if ending(n) in endings or (n not in tables and is_image(file))}


def _refuse_archives(files: dict[str, SourceFile], unpacked: dict[str, SourceFile], params: DataParams) -> None:
    """Refuses a folder without an image file, by a UserError, if it has a packed archive or nothing for `datasets`.

    Args:
        files: the files of the folder.
        unpacked: the same, with those in zip archives in place of these.
    """
    packed = [n for n, f in unpacked.items() if ending(n) in PACKED or (ending(n) == TAR and is_packed_folder(f))]
    if packed:
        raise UserError(
            f"data.source: {params.source!r}: no image is read from {shown(packed[0])} while it is packed; unpack it, "
            "and set data.source and data.watch to the unpacked folder, or remove it"
        )
    if not any(ending(file) in ARCHIVES for file in files):
        found = sorted({shown(ending(file)) or "no ending" for file in unpacked})[:5]
        zips = "" if unpacked is files else ", those in zip archives counted,"
        raise UserError(
            f"data.source: {params.source!r} has {len(unpacked)} files{zips} but no image (found: {', '.join(found)}); "
            f"expected parquet, a save_to_disk folder, or images such as {' '.join(sorted(image_suffixes()))}"
        )


@contextmanager
def _reading(params: DataParams) -> Iterator[None]:
    """Silences the logs and the progress bars of the loaders, and turns errors into UserError."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("datasets", "huggingface_hub")}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except ConnectionError as error:
        raise UserError(
            f"data.source: {params.source!r} cannot be fetched: no network to the Hub ({_line(error)}); connect, or "
            "bring the dataset here by other means and set data.source and data.watch to its folder"
        ) from error
    except Exception as error:  # loaders raise many kinds of errors on damaged files
        if no_space(error):
            raise
        raise UserError(
            f"data.source: {params.source!r} cannot be read as a dataset ({type(error).__name__}: {_line(error)}); "
            "check its files, data.revision and data.configuration"
        ) from error
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _line(error: Exception) -> str:
    """The message of an error, or of its cause if it has one, in one line."""
    return " ".join(str(error.__cause__ or error).split())


def _tables(folder: Path, listing: Listing, params: DataParams, cache: Path) -> dict[str, datasets.Dataset]:
    """Opens the tables of a folder. Returns the table of each split. Raises UserError."""
    _refuse_odd(folder, listing)
    # The shared cache of `datasets` distinguishes folders by name only, and might return images of another folder.
    return _load(params, folder, path=str(folder), cache_dir=str(cache))[0]


def _refuse_odd(folder: Path, listing: Listing) -> None:
    """Refuses a folder with pipes, sockets or devices, which `datasets` might wait for, by a UserError."""
    if listing.odd:
        raise UserError(f"data.source: {folder / listing.odd[0]}: a pipe, a socket or a device; remove it")


def _saved(folder: Path, listing: Listing, params: DataParams) -> dict[str, datasets.Dataset]:
    """Opens a folder that `save_to_disk` wrote. Returns the table of each split. Raises UserError."""
    import datasets

    _refuse_odd(folder, listing)
    for name in listing.files:
        if PurePosixPath(name).name in ("dataset_dict.json", "state.json"):
            _refuse_outside(folder / name)
    with _reading(params):
        loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _refuse_outside(file: Path) -> None:
    """Refuses a file of `save_to_disk` that names a folder or a file elsewhere, by a UserError."""
    value = read_json(file)
    try:
        named = [*value.get("splits", ()), *(one["filename"] for one in value.get("_data_files", ()))]
        strange = [name for name in named if PurePosixPath(name).name != name or name == ".."]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"data.source: {file}: not as `save_to_disk` writes it; restore the folder") from error
    if strange:
        raise UserError(f"data.source: {file} names {strange[0]!r}, which does not lie beside it; restore the folder")


def _load(
    params: DataParams, folder: Path | None, **arguments: Any
) -> tuple[dict[str, datasets.Dataset], tuple[Path, ...]]:
    """Opens a dataset as `datasets.load_dataset` does, from its own files alone: a README may name others.

    Args:
        folder: the local folder that the files must be in. None: they must be those of the Hub id.

    Returns:
        The table of each split; and folders into which `datasets` unpacks archives of images.

    Raises:
        UserError: the dataset cannot be read, or names files that are not its own.
    """
    import datasets
    from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

    with _reading(params):
        builder = datasets.load_dataset_builder(name=params.configuration, **arguments)
        named = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    own = f"{folder}/" if folder else f"hf://datasets/{params.source}@"
    strange = [name for name in named if not os.path.normpath(name).startswith(os.path.normpath(own))]
    if strange:
        raise UserError(
            f"data.source: {params.source!r} names {strange[0]}, which is not one of its own files; correct the "
            "data_files in its README.md"
        )
    with _reading(params):
        builder.download_and_prepare()
        tables = dict(builder.as_dataset())
    images = isinstance(builder, FolderBasedBuilder)
    return tables, (Path(datasets.config.EXTRACTED_DATASETS_PATH),) if images else ()
