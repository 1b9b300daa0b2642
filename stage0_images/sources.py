"""Opens the source of images that `data.source` names.

A source is scikit-learn's digits, a dataset on the Hugging Face Hub, a local folder in the Hub's layout, a folder
written by `save_to_disk`, or a plain folder of images. The Hub's layout and saved datasets are opened by `datasets`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images import metadata
from stage0_images.columns import Aside, Source, SourceImage, SourceSplit, from_tables, shown
from stage0_images.folders import list_files, plain_source, split_files
from stage0_images.parameters import DataParams
from stage0_images.pixels import image_suffixes, is_image
from stage0_images.places import check_places
from tessera.errors import UserError

if TYPE_CHECKING:
    import datasets

# In the Hub's layout, images lie in parquet files or in files with these endings.
PARQUET = ".parquet"
ARCHIVES = (".arrow", ".tar", ".json", ".jsonl", ".csv")
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
    return from_tables(_hub(params), params, None) if folder is None else _local(folder, params, cache)


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


def _hub(params: DataParams) -> dict[str, datasets.Dataset]:
    """Opens a dataset on the Hub. Returns the table of each split. Raises UserError."""
    return _load(params, path=params.source, revision=params.revision)


def _local(folder: Path, params: DataParams, cache: Path) -> Source:
    """Opens a local folder, whose kind is told by its files. Raises UserError."""
    files, aside = list_files(folder)
    if not files:
        raise UserError(f"data.source: {params.source!r} is an empty folder; put images there")
    if "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files):
        return from_tables(_saved(folder, params), params, folder)
    tables = set(metadata.files_of(files))
    # The shared cache of `datasets` distinguishes folders by name only, and might return images of another folder.
    place = {"path": str(folder), "cache_dir": str(cache)}
    if any(_ending(file) == PARQUET for file in files):
        source = from_tables(_load(params, **place), params, folder)
        return replace(source, aside=(*aside, *_beside_parquet(source, files)))
    images = [f for f in files if _ending(f) in image_suffixes() or (f not in tables and is_image(folder / f))]
    if not images:
        _refuse_archives(files, params)
        return from_tables(_load(params, **place), params, folder)
    described = metadata.read(folder, files, params)
    known = tables.union(images)
    aside += [_skipped(file) for file in files if file not in known]
    if described.rows is None:
        source = plain_source(folder, images, params)
    else:
        opened, unnamed = metadata.tables(described.rows, folder, split_files(images, params))
        source, aside = from_tables(opened, params, folder), aside + unnamed
    return replace(source, aside=tuple(aside), notes=(*described.notes, *source.notes))


def _ending(file: str) -> str:
    """The ending of a file's name, in lower case, with the dot."""
    return PurePosixPath(file).suffix.lower()


def _skipped(file: str) -> Aside:
    """A file that is no image, as far as can be told."""
    ending = shown(_ending(file))
    return Aside(shown(file), ending or "without an ending", "not an image in a format that is read")


def _beside_parquet(source: Source, files: list[str]) -> list[Aside]:
    """The images and archives beside parquet files, if these hold the images."""
    first = [image.content for split in source.splits.values() for image in split.fetch(np.arange(split.count)[:1])]
    if any(isinstance(content, Path) for content in first):
        return []
    unread = [file for file in files if _ending(file) in image_suffixes() or _ending(file) in PACKED]
    return [Aside(shown(f), f"{_ending(f)} beside parquet", "the parquet files hold the images") for f in unread]


def _refuse_archives(files: list[str], params: DataParams) -> None:
    """Refuses a folder that has no image and no file in which `datasets` finds images, by a UserError."""
    packed = [file for file in files if _ending(file) in PACKED]
    if packed:
        raise UserError(
            f"data.source: {params.source!r} has no image outside {shown(packed[0])}; unpack the archive, and set "
            "data.source and data.watch to the unpacked folder"
        )
    if not any(_ending(file) in ARCHIVES for file in files):
        found = sorted({shown(_ending(file)) or "no ending" for file in files})[:5]
        raise UserError(
            f"data.source: {params.source!r} has {len(files)} files but no image (found: {', '.join(found)}); expected "
            f"parquet, a save_to_disk folder, or images such as {' '.join(sorted(image_suffixes()))}"
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


def _saved(folder: Path, params: DataParams) -> dict[str, datasets.Dataset]:
    """Opens a folder that `save_to_disk` wrote. Returns the table of each split. Raises UserError."""
    import datasets

    with _reading(params):
        loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _load(params: DataParams, **arguments: Any) -> dict[str, datasets.Dataset]:
    """Opens a dataset by `datasets.load_dataset`. Returns the table of each split. Raises UserError."""
    import datasets

    with _reading(params):
        return dict(datasets.load_dataset(name=params.configuration, **arguments))
