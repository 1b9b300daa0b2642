"""Chooses the splits, the image column and the label column of tables that were opened by `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images.parameters import DataParams
from tessera.errors import UserError

if TYPE_CHECKING:
    import datasets

# The names that a source may use for each split, in upper or lower case. If several are there, the first one is taken.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class SourceImage:
    """An image that is not yet decoded.

    Attributes:
        content: encoded bytes, the path of a file, uint8 pixels (H, W), or None where the source has no image.
        file: the image's name in the source, or None if it has none.
    """

    content: bytes | Path | np.ndarray | None
    file: str | None


@dataclass(frozen=True)
class SourceSplit:
    """A split of the source.

    Attributes:
        name: the source's own name of the split.
        count: the number of images.
        labels: int64 (count,), or None without labels.
        fetch: a function that returns the images of the given rows, int64 (m,), in their order.
    """

    name: str
    count: int
    labels: np.ndarray | None
    fetch: Callable[[np.ndarray], list[SourceImage]]


@dataclass(frozen=True)
class Source:
    """An opened source of images.

    Attributes:
        splits: the splits by their standard names: train, validation and test.
        classes: the names of the classes in the order of their labels, or None without labels.
        unused: names of the source's splits that are not used.
    """

    splits: dict[str, SourceSplit]
    classes: tuple[str, ...] | None
    unused: tuple[str, ...]


def from_tables(tables: dict[str, datasets.Dataset], params: DataParams, folder: Path | None) -> Source:
    """Chooses the splits and the columns of an opened dataset.

    Args:
        tables: the table of each split, by the source's own names.
        params: the parameters, of which those about columns and labels are used.
        folder: the local folder from which the tables come; file names are given relative to it. None for a Hub id.

    Raises:
        UserError: there is no training split; there is no suitable column, or more than one; a column is missing or
            has a wrong type; or images have no label.
    """
    chosen = choose_splits(tables, params.source)
    used = {split: tables[name] for split, name in chosen.items()}
    image = _image_column(used, params)
    label = _label_column(used, params) if params.use_labels else None
    unused = sorted(tables.keys() - chosen.values())
    if label is not None and "test" in used and _unlabelled(used["test"], label):
        # The publisher keeps the labels of this test split secret. Where labels are wanted, it is of no use.
        del used["test"]
        unused.append(f"{chosen['test']} (no labels)")
    classes, labels = (None, dict.fromkeys(used)) if label is None else _labels(used, chosen, label)
    splits = {
        split: SourceSplit(chosen[split], len(table), labels[split], _fetcher(table, image, folder))
        for split, table in used.items()
    }
    return Source(splits, classes, tuple(unused))


def choose_splits(names: Iterable[str], source: str) -> dict[str, str]:
    """Finds the standard splits among the splits of a source.

    Args:
        names: the source's own names of its splits.
        source: the value of data.source, for the message.

    Returns:
        the source's own names, by the standard names train, validation and test. Splits that it lacks are left out.

    Raises:
        UserError: there is no training split.
    """
    own = {name.lower(): name for name in names}
    chosen = {
        split: next(own[alias] for alias in aliases if alias in own)
        for split, aliases in SPLIT_NAMES.items()
        if any(alias in own for alias in aliases)
    }
    if "train" not in chosen:
        raise UserError(
            f"data.source: {source!r} has no training split, only {', '.join(sorted(own.values())) or 'none'}; "
            "expected one called train"
        )
    return chosen


def _common_features(tables: dict[str, datasets.Dataset]) -> dict[str, Any]:
    """The columns of the training split that every other split has too, with their types."""
    return {
        name: feature
        for name, feature in tables["train"].features.items()
        if all(name in table.features for table in tables.values())
    }


def _named(features: dict[str, Any], name: str, parameter: str) -> str:
    """Returns a column's name that `data.parameter` gives, or raises UserError if there is no such column."""
    if name not in features:
        raise UserError(f"data.{parameter}: no column {name!r} in every split; the columns are {', '.join(features)}")
    return name


def _only(candidates: list[str], parameter: str, kind: str) -> str:
    """Returns the only candidate, or raises UserError if `data.parameter` must choose among several."""
    if len(candidates) > 1:
        raise UserError(
            f"data.{parameter}: several columns of {kind} type ({', '.join(candidates)}); name the one to use"
        )
    return candidates[0]


def _is_image(feature: Any) -> bool:
    """Whether a column may hold images: it has image type, or it holds bytes, or structs with a field `bytes`."""
    import datasets

    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _image_column(tables: dict[str, datasets.Dataset], params: DataParams) -> str:
    """The name of the image column: the one that the parameters name, or else the only one of image type."""
    import datasets

    features = _common_features(tables)
    if params.image_column is not None:
        name = _named(features, params.image_column, "image_column")
        if not _is_image(features[name]):
            raise UserError(f"data.image_column: column {name!r} holds no images, its type is {features[name]}")
        return name
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not found:
        raise UserError(
            f"data.image_column: no column of image type in every split of {params.source!r}; "
            f"name one of its columns: {', '.join(features)}"
        )
    return _only(found, "image_column", "image")


def _label_column(tables: dict[str, datasets.Dataset], params: DataParams) -> str | None:
    """The name of the label column: the one that the parameters name, or else the only one of class-label type.

    Returns:
        None if the parameters name no column and none has class-label type.
    """
    import datasets

    if params.label_column is not None:
        return _named(_common_features(tables), params.label_column, "label_column")
    found = [name for name, feature in tables["train"].features.items() if isinstance(feature, datasets.ClassLabel)]
    if not found:
        return None
    name = _only(found, "label_column", "class-label")
    lacking = [split for split, table in tables.items() if name not in table.features]
    if lacking:
        raise UserError(
            f"data.label_column: {name!r} is missing in the split {lacking[0]}; add it, or set data.use_labels: false"
        )
    return name


def _without_label(table: datasets.Dataset, column: str) -> int:
    """The number of rows without a label, which is null, or -1 in a column of class-label type."""
    import datasets
    import pyarrow.compute as pc

    values = table.select_columns([column]).with_format("arrow")[:][column]
    declared = isinstance(table.features[column], datasets.ClassLabel)
    return values.null_count + (pc.sum(pc.less(values, 0)).as_py() or 0 if declared else 0)


def _unlabelled(table: datasets.Dataset, column: str) -> bool:
    """Whether a table has rows, and none of them has a label."""
    return len(table) > 0 and _without_label(table, column) == len(table)


def _labels(
    tables: dict[str, datasets.Dataset], names: dict[str, str], column: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Reads the labels.

    A column of class-label type has named classes. In a column of integers or strings, each value is a class, and the
    classes are sorted.

    Args:
        tables: the table of each split, by the standard names.
        names: the source's own names of the splits, by the standard names.
        column: the label column.

    Returns:
        the names of the classes, and the labels of each split, int64 (count,).

    Raises:
        UserError: splits have different types or classes, the type is of no use, or images have no label.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    features = {split: table.features[column] for split, table in tables.items()}
    values = {s: t.select_columns([column]).with_format("arrow")[:][column] for s, t in tables.items()}
    feature = features["train"]
    if any(other != feature for other in features.values()):
        raise UserError(f"data.label_column: {column!r} has other classes or another type in some splits than in train")
    declared = isinstance(feature, datasets.ClassLabel)
    kind = values["train"].type
    if not declared and not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"data.label_column: {column!r} is of type {kind}; expected class labels, integers or strings")
    for split, table in tables.items():
        if missing := _without_label(table, column):
            raise UserError(
                f"data.label_column: {missing} of {len(table)} images of the split {names[split]} have no label "
                f"(-1 or null in {column!r}); set data.use_labels: false to use the images without labels"
            )
    if declared:
        return tuple(feature.names), {s: v.to_numpy().astype(np.int64) for s, v in values.items()}
    classes = sorted(set().union(*(pc.unique(v).to_pylist() for v in values.values())))
    known = pa.array(classes, kind)
    numbered = {s: pc.index_in(v, value_set=known).to_numpy().astype(np.int64) for s, v in values.items()}
    return tuple(str(name) for name in classes), numbered


def _fetcher(table: datasets.Dataset, column: str, folder: Path | None) -> Callable[[np.ndarray], list[SourceImage]]:
    """The function `fetch` of a split."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        # `datasets` must not decode: one damaged file would raise and lose the whole batch.
        table = table.cast_column(column, datasets.Image(decode=False))
    return partial(_fetch, table.select_columns([column]), column, folder)


def _fetch(table: datasets.Dataset, column: str, folder: Path | None, rows: np.ndarray) -> list[SourceImage]:
    """Reads rows of a table without decoding the images."""
    images = []
    for value in table[rows.tolist()][column]:
        value = value if isinstance(value, dict) else {"bytes": value}
        data, path = value["bytes"], value.get("path")
        file = Path(folder or ".", path) if path else None
        name = None if file is None else file.name
        if folder is not None and file is not None and file.is_relative_to(folder):
            name = file.relative_to(folder).as_posix()
        images.append(SourceImage(file if data is None else data, name))
    return images
