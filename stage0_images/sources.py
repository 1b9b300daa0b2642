"""Opens the source of images that `data.source` names.

A source is scikit-learn's digits, a dataset on the Hugging Face Hub, a local folder in the Hub's layout, a folder
written by `save_to_disk`, or a plain folder of images. All but the digits are opened by `datasets`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images.columns import Source, SourceImage, SourceSplit, from_tables
from stage0_images.folders import list_files, plain_tables
from stage0_images.parameters import DataParams
from stage0_images.pixels import image_suffixes
from tessera.errors import UserError

if TYPE_CHECKING:
    import datasets

# In the Hub's layout, images lie in parquet files or in files with these endings.
ARCHIVES = (".arrow", ".tar", ".zip", ".json", ".jsonl", ".csv")
# Files that give labels to the image files beside them.
METADATA = ("metadata.csv", "metadata.jsonl")


def open_source(params: DataParams, cache: Path) -> Source:
    """Opens the source that the parameters name.

    Args:
        params: the section `data` of params.yaml.
        cache: an existing folder, in which `datasets` unpacks a local source. Keep it while images are fetched.

    Raises:
        UserError: the source is missing, empty, unreadable or ambiguous, or `data.watch` does not match it.
    """
    folder = None if params.source == "digits" else _local_folder(params)
    _check_watch(params, folder)
    if params.source == "digits":
        return _digits(params)
    tables = _hub(params) if folder is None else _local(folder, params, cache)
    return from_tables(tables, params, folder)


def _local_folder(params: DataParams) -> Path | None:
    """The absolute path of the folder that the source names, or None for a Hub id. Raises UserError for neither."""
    path = Path(os.path.abspath(Path(params.source).expanduser()))
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"data.source: {params.source!r} is a file; give the folder it lies in")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", params.source) and not path.parent.exists():
        return None
    raise UserError(
        f"data.source: {params.source!r}: no such folder; give an existing folder, a Hub id (owner/name), or digits"
    )


def _check_watch(params: DataParams, folder: Path | None) -> None:
    """Checks the path that DVC watches: the source itself if it is a local folder, otherwise any existing file.

    Raises:
        UserError: `data.watch` is another path.
    """
    if folder is None:
        if not Path(params.watch).is_file():
            raise UserError(
                f"data.watch: {params.watch!r} is not a file; with data.source {params.source!r}, which is no local "
                "folder, set it to data/embedded.txt"
            )
    elif os.path.abspath(params.watch) != str(folder):
        wanted = str(folder) if params.source.startswith("~") else params.source
        raise UserError(
            f"data.watch: {params.watch!r} is not the folder of data.source; set it to {wanted!r} too, so that DVC "
            "sees when the images change"
        )


def _digits(params: DataParams) -> Source:
    """Opens scikit-learn's 1,797 handwritten digits of 8x8 pixels, as one training split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16

    def fetch(rows: np.ndarray) -> list[SourceImage]:
        return [SourceImage(pixels[row], None) for row in rows]

    labels = bunch.target.astype(np.int64) if params.use_labels else None
    classes = tuple(str(name) for name in bunch.target_names) if params.use_labels else None
    return Source({"train": SourceSplit("train", len(pixels), labels, fetch)}, classes, ())


def _hub(params: DataParams) -> dict[str, datasets.Dataset]:
    """Opens a dataset on the Hub. Returns the table of each split. Raises UserError."""
    if params.revision is None:
        raise UserError(
            f"data.revision: required for the Hub id {params.source!r}, so that a run can be repeated; "
            "give a commit (best), tag or branch of the dataset"
        )
    return _load(params, path=params.source, revision=params.revision)


def _local(folder: Path, params: DataParams, cache: Path) -> dict[str, datasets.Dataset]:
    """Opens a local folder, whose kind is told by its files. Returns the table of each split. Raises UserError."""
    files = list_files(folder)
    if not files:
        raise UserError(f"data.source: {params.source!r} is an empty folder; put images there")
    if "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files):
        return _saved(folder, params)
    suffixes = {file: PurePosixPath(file).suffix.lower() for file in files}
    endings = set(suffixes.values())
    described = ".parquet" in endings or any(PurePosixPath(file).name in METADATA for file in files)
    if not described and endings & image_suffixes():
        return plain_tables(folder, [file for file in files if suffixes[file] in image_suffixes()], params)
    if not described and not endings.intersection(ARCHIVES):
        raise UserError(
            f"data.source: {params.source!r} has {len(files)} files but no image; expected parquet, a save_to_disk "
            f"folder, or files ending in {' '.join(sorted(image_suffixes()))}"
        )
    # The shared cache of `datasets` distinguishes folders by name only, and might return images of another folder.
    return _load(params, path=str(folder), cache_dir=str(cache))


@contextmanager
def _reading(params: DataParams) -> Iterator[None]:
    """Silences the logs of the loaders, and outside a terminal their progress bars, and turns errors into UserError."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
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
