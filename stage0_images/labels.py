"""Chooses the label column of tables that were opened by `datasets`, and reads the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images.parameters import DataParams
from tessera.errors import UserError, printable

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# The names, in upper or lower case, of columns that are taken for labels without being named in params.yaml, if their
# values can only be classes.
LABEL_NAMES = ("label", "labels", "class", "classes")
MOST_CLASSES = 1000  # of such a column; there must also be at least two images a class on average


def label_column(tables: dict[str, datasets.Dataset], params: DataParams) -> tuple[str | None, list[str]]:
    """Chooses the label column: the one that the parameters name, the only one of class-label type, or one by its name.

    Args:
        tables: the table of each split, by the standard names.
        params: the parameters, of which `label_column` is used.

    Returns:
        The column's name, or None if there is no column to take; and what the user should be told about the choice.

    Raises:
        UserError: several columns are equally good, or the parameters name one that is not there and none takes its
            place.
    """
    import datasets

    features = tables["train"].features
    declared = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    wanted = params.label_column
    if wanted is not None and wanted in features:
        return wanted, []
    faults = label_faults(tables["train"])
    found = declared or [name for name, fault in faults.items() if fault is None]
    if wanted is not None:
        if len(found) != 1:
            told = [f"no column {wanted!r}", f"the columns are {', '.join(features)}", *_label_fields(features)]
            raise UserError(f"data.label_column: {'; '.join(told)}")
        return found[0], [f"data.label_column: no column {wanted!r}; {found[0]!r}, the only label column, is used"]
    if len(found) > 1:
        raise UserError(f"data.label_column: several columns may be labels ({', '.join(found)}); name the one to use")
    if found:
        return found[0], []
    notes = [f"no labels: column {name!r} {fault}" for name, fault in faults.items()]
    own = [name for name in features if name not in faults and not name.startswith("__")]  # as `__url__` of WebDataset
    others = [name for name in own if _unfit(tables["train"], name) is None]
    notes += [f"no labels: {told}" for told in _label_fields(features)]
    if others:
        notes.append(f"no labels, but columns that could be labels: {', '.join(others)}; data.label_column names one")
    return None, notes


def label_faults(table: datasets.Dataset) -> dict[str, str | None]:
    """Why each column called like labels is not taken for them. None: it can only be labels."""
    return {name: _unfit(table, name) for name in table.features if name.lower() in LABEL_NAMES}


def _label_fields(features: Mapping[str, Any]) -> list[str]:
    """Names the fields called like labels in columns of records, such as the `.json` files of a WebDataset shard."""
    records = {column: feature for column, feature in features.items() if isinstance(feature, dict)}
    return [
        f"{field!r} is a field inside column {column!r}, and only a column of its own is taken for labels"
        for column, fields in records.items()
        for field in fields
        if field.lower() in LABEL_NAMES
    ]


def _values(table: datasets.Dataset, column: str) -> pa.ChunkedArray:
    """A column as it is stored."""
    return table.select_columns([column]).with_format("arrow")[:][column]


def _is_class(kind: pa.DataType) -> bool:
    """Whether values of a type may be classes."""
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _unfit(table: datasets.Dataset, column: str) -> str | None:
    """Why a column is not taken for labels without being named in params.yaml. None: it can only be labels."""
    import datasets
    import pyarrow.compute as pc

    feature = table.features[column]
    if not isinstance(feature, datasets.Value):
        return f"is of type {feature}; classes are whole numbers, texts or truth values"
    if not len(table):
        return "has no value for any training image"
    values = _values(table, column)
    if not _is_class(values.type):
        return f"is of type {values.type}; classes are whole numbers, texts or truth values"
    distinct = pc.count_distinct(values).as_py()
    if distinct < 2:
        return "has the same value for every image"
    if distinct > min(MOST_CLASSES, len(table) // 2):
        return (
            f"has {distinct} different values in {len(table)} rows, too many to be taken for classes; "
            "data.label_column takes it nevertheless"
        )
    return None


def without_label(table: datasets.Dataset, column: str) -> int:
    """The number of rows without a label, which is null, or -1 in a column of class-label type. No column: all rows."""
    import datasets
    import pyarrow.compute as pc

    if column not in table.features:
        return len(table)
    values = _values(table, column)
    declared = isinstance(table.features[column], datasets.ClassLabel)
    return values.null_count + (pc.sum(pc.less(values, 0)).as_py() or 0 if declared else 0)


def read_labels(
    tables: dict[str, datasets.Dataset], names: dict[str, str], column: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Reads the labels.

    A column of class-label type has named classes. In a column of integers, texts or truth values, each value is a
    class, and the classes are sorted.

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

    features = {split: table.features[column] for split, table in tables.items()}
    feature, values = features["train"], {split: _values(table, column) for split, table in tables.items()}
    if any(other != feature for other in features.values()):
        raise UserError(f"data.label_column: {column!r} has other classes or another type in some splits than in train")
    declared = isinstance(feature, datasets.ClassLabel)
    if not declared and not _is_class(values["train"].type):
        raise UserError(
            f"data.label_column: {column!r} is of type {values['train'].type}; expected class labels, integers, "
            "strings or truth values"
        )
    for split, table in tables.items():
        if missing := without_label(table, column):
            raise UserError(
                f"data.label_column: {missing} of {len(table)} images of the split {names[split]} have no label "
                f"(-1 or null in {column!r}); set data.use_labels: false to use the images without labels"
            )
    if declared:
        return tuple(map(printable, feature.names)), {
            split: v.to_numpy().astype(np.int64) for split, v in values.items()
        }
    return _numbered(values)


def _numbered(values: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The sorted values of all splits as classes, and each split's values as their numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    classes = sorted(set().union(*(pc.unique(v).to_pylist() for v in values.values())))
    known = pa.array(classes, values["train"].type)
    numbers = {s: pc.index_in(v, value_set=known).to_numpy().astype(np.int64) for s, v in values.items()}
    return tuple(printable(str(name)) for name in classes), numbers
