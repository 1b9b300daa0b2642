"""Small image sources for tests: folders, tables, parquet files, saved datasets. An image is 4x4 pixels of one grey."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from stage0_images.reading import BadImage, SourceFile, encoded


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def value_of(content: bytes | SourceFile) -> int:
    with encoded(content, 2**20) as data:
        return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0])


def values_of(split) -> list[int]:
    return [value_of(image.content) for image in split.fetch(np.arange(split.count))]


def write_images(folder: Path, names: dict[str, int]) -> Path:
    for name, value in names.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(value))
    return folder


def table(values: list[int], image: str = "image", **columns) -> datasets.Dataset:
    """A dataset with an image column; a column given as (values, class names) is one of class labels."""
    features = {image: datasets.Image()}
    data = {image: [{"bytes": png(value), "path": None} for value in values]}
    for name, column in columns.items():
        numbers, names = column if isinstance(column, tuple) else (column, None)
        kinds = {str: "string", float: "float32", bool: "bool", int: "int64"}
        if isinstance(numbers[0], list):
            features[name] = datasets.List(datasets.Value("int64"))
        else:
            features[name] = datasets.ClassLabel(names=names) if names else datasets.Value(kinds[type(numbers[0])])
        data[name] = numbers
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def write_parquet(folder: Path, **splits: datasets.Dataset) -> Path:
    """A folder in the Hub's layout."""
    (folder / "data").mkdir(parents=True)
    for name, split in splits.items():
        # Through Arrow: `to_parquet` shows a progress bar of its own.
        pq.write_table(split.with_format("arrow")[:], folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def saved(folder: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def contents(split) -> list[int | str]:
    """The grey value of each image, or why it is refused."""
    found: list[int | str] = []
    for image in split.fetch(np.arange(split.count)):
        try:
            found.append(value_of(image.content))
        except BadImage as error:
            found.append(str(error))
    return found
