"""Chooses the splits, the image column and the label column of tables that were opened by `datasets`."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stage0_images.labels import label_column, read_labels, without_label
from stage0_images.parameters import DataParams
from stage0_images.reading import DiskFile, SourceFile
from stage0_images.splits import choose_splits
from tessera.errors import UserError, printable

if TYPE_CHECKING:
    import datasets

# Rows of a table bring their bytes into memory. So many rows are fetched at a time, but no more than so many bytes.
PORTION_ROWS, PORTION_BYTES = 32, 2**22
NAMED = 5  # how many of many names a line has
LOOK_AHEAD = 4096  # rows whose sizes are looked up at a time


def shown(name: str) -> str:
    """The name of a file, class or column as one line of text, bytes that are no UTF-8 escaped; see `printable`."""
    with contextlib.suppress(UnicodeEncodeError):  # a name from a table may hold any half of a surrogate pair
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return printable(name)


def some_of(names: Sequence[str]) -> str:
    """The first few of many names, separated by commas."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


@dataclass(frozen=True)
class SourceImage:
    """An image that is not yet decoded.

    Attributes:
        content: encoded bytes, a file, uint8 pixels (H, W), or None where the source has no image.
        file: the image's name in the source, or None if it has none.
    """

    content: bytes | SourceFile | np.ndarray | None
    file: str | None


@dataclass(frozen=True)
class SourceSplit:
    """A split of the source.

    Attributes:
        name: the source's own name of the split.
        count: the number of images.
        labels: int64 (count,), or None without labels.
        fetch: a function that returns the images of the given rows, int64 (m,), in their order.
        sizes: a function that returns how many bytes `fetch` brings into memory for each of the given rows, int64 (m,).
            None: it brings none, since images lie in files of their own, or are in memory already.
    """

    name: str
    count: int
    labels: np.ndarray | None
    fetch: Callable[[np.ndarray], list[SourceImage]]
    sizes: Callable[[np.ndarray], np.ndarray] | None = None

    def portions(self, rows: np.ndarray, most: int = PORTION_ROWS) -> Iterator[tuple[np.ndarray, int]]:
        """Cut rows into portions that may be fetched at once: of at most `PORTION_BYTES`, or one row that has more.

        Args:
            rows: int64 (m,), ascending.
            most: the largest number of rows of a portion.

        Yields:
            The rows of a portion, and how many bytes `fetch` brings into memory for them.
        """
        for start in range(0, len(rows), LOOK_AHEAD):
            ahead = rows[start : start + LOOK_AHEAD]
            sizes = np.zeros(len(ahead), np.int64) if self.sizes is None else self.sizes(ahead)
            ends = np.cumsum(sizes)  # of each row, counted from the first one of `ahead`
            first, before = 0, 0
            while first < len(ahead):
                fitting = int(np.searchsorted(ends, before + PORTION_BYTES, side="right"))
                last = min(max(fitting, first + 1), first + most)
                yield ahead[first:last], int(ends[last - 1]) - before
                first, before = last, int(ends[last - 1])

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        """The images of some rows, int64 (m,), ascending: one after the other, fetched in portions."""
        for portion, _ in self.portions(rows):
            yield from self.fetch(portion)


@dataclass(frozen=True)
class Aside:
    """A file or folder of the source that is not read.

    Attributes:
        file: its name relative to the source.
        kind: what it is counted as, such as ".heic".
        reason: why it is not read.
    """

    file: str
    kind: str
    reason: str


def left_aside(aside: Sequence[Aside]) -> str:
    """How many files of each kind are not read, the most frequent kind first; "" if there are none."""
    kinds = Counter(one.kind for one in aside)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    return f"left aside: {counts}" if counts else ""


@dataclass(frozen=True)
class Source:
    """An opened source of images.

    Attributes:
        splits: the splits by their standard names: train, validation and test.
        classes: the names of the classes in the order of their labels, or None without labels.
        unused: names of the source's splits that are not used.
        aside: files that are not read.
        notes: lines that tell the user how the source was understood.
    """

    splits: dict[str, SourceSplit]
    classes: tuple[str, ...] | None
    unused: tuple[str, ...] = ()
    aside: tuple[Aside, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits_left_out(self) -> str:
        """Which splits are not used; "" if all are."""
        return f"splits not used: {', '.join(self.unused)}" if self.unused else ""

    def understood(self) -> list[str]:
        """How the source was understood, a line for each thing that the user may not expect."""
        return [line for line in (left_aside(self.aside), self.splits_left_out, *self.notes) if line]


@dataclass(frozen=True)
class Place:
    """Where images lie that a table only names.

    Attributes:
        inside: the folders in one of which a named file must lie, after symbolic links are followed.
        folder: the local folder that relative names are below. None: the dataset comes from the Hub.
        files: files by the names that the table has for them. Names that are not among them are paths.
    """

    inside: tuple[Path, ...]
    folder: Path | None = None
    files: Mapping[str, SourceFile] = field(default_factory=dict)

    def find(self, name: str) -> tuple[SourceFile, str]:
        """The file that a table names, and its name for messages."""
        if name in self.files:
            return self.files[name], shown(name)
        path = Path(self.folder or ".", name)
        below = self.folder is not None and path.is_relative_to(self.folder)
        return DiskFile(path, self.inside), shown(path.relative_to(self.folder).as_posix() if below else path.name)


def from_tables(tables: dict[str, datasets.Dataset], params: DataParams, place: Place) -> Source:
    """Chooses the splits and the columns of an opened dataset.

    Args:
        tables: the table of each split, by the source's own names.
        params: the parameters, of which those about columns and labels are used.
        place: where images lie that the tables only name.

    Raises:
        UserError: there is no training split; there is no suitable column, or more than one; a column is missing or
            has a wrong type; or images have no label.
    """
    chosen = choose_splits(tables, params.source)
    used = {split: tables[name] for split, name in chosen.items()}
    image, notes = _image_column(used, params)
    label = None
    if params.use_labels:
        label, more = label_column(used, params)
        notes += more
    unused = sorted(tables.keys() - chosen.values())
    for split in ("validation", "test"):
        if label is not None and split in used and without_label(used[split], label) == len(used[split]) > 0:
            # The publisher keeps the labels of this split secret. Where labels are wanted, it is of no use.
            del used[split]
            unused.append(f"{chosen[split]} (no labels)")
    classes, labels = (None, dict.fromkeys(used)) if label is None else read_labels(used, chosen, label)
    splits = {
        split: SourceSplit(chosen[split], len(table), labels[split], *_readers(table, image, place))
        for split, table in used.items()
    }
    return Source(splits, classes, tuple(unused), notes=tuple(notes))


def _common_features(tables: dict[str, datasets.Dataset]) -> dict[str, Any]:
    """The columns of the training split that every other split has too, with their types."""
    return {
        name: feature
        for name, feature in tables["train"].features.items()
        if all(name in table.features for table in tables.values())
    }


def _is_image(feature: Any) -> bool:
    """Whether a column may hold images: it has image type, or it holds bytes, or structs with a field `bytes`."""
    import datasets

    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _image_column(tables: dict[str, datasets.Dataset], params: DataParams) -> tuple[str, list[str]]:
    """The name of the image column, and what the user should be told about the choice.

    It is the one that the parameters name, or the only one of image type. That one also takes the place of a named
    column that is not there: a preset names the column of its own dataset.

    Raises:
        UserError: there is no such column, or more than one.
    """
    import datasets

    features, wanted = _common_features(tables), params.image_column
    if wanted in features:
        if not _is_image(features[wanted]):
            raise UserError(f"data.image_column: column {wanted!r} holds no images, its type is {features[wanted]}")
        return wanted, []
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if not found:
        missing = "" if wanted is None else f"no column {wanted!r}, and "
        raise UserError(
            f"data.image_column: {missing}no column of image type in every split of {params.source!r}; "
            f"name one of its columns: {', '.join(features)}"
        )
    if len(found) > 1:
        raise UserError(f"data.image_column: several columns of image type ({', '.join(found)}); name the one to use")
    return found[0], [] if wanted is None else [
        f"data.image_column: no column {wanted!r}; {found[0]!r}, the only one of image type, is used"
    ]


def _readers(
    table: datasets.Dataset, column: str, place: Place
) -> tuple[Callable[[np.ndarray], list[SourceImage]], Callable[[np.ndarray], np.ndarray]]:
    """The functions `fetch` and `sizes` of a split."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        # `datasets` must not decode: one damaged file would raise and lose the whole batch.
        table = table.cast_column(column, datasets.Image(decode=False))
    table = table.select_columns([column])
    return partial(_fetch, table, column, place), partial(_sizes, table.with_format("arrow"), column)


def _fetch(table: datasets.Dataset, column: str, place: Place, rows: np.ndarray) -> list[SourceImage]:
    """Reads rows of a table without decoding the images."""
    images = []
    for value in table[rows.tolist()][column]:
        value = value if isinstance(value, dict) else {"bytes": value}
        file, name = place.find(value["path"]) if value.get("path") else (None, None)
        images.append(SourceImage(file if value["bytes"] is None else value["bytes"], name))
    return images


def _sizes(table: datasets.Dataset, column: str, rows: np.ndarray) -> np.ndarray:
    """The number of bytes of each row's image, 0 where there are none. Only the lengths are read.

    Args:
        table: gives Arrow tables. A slice of it copies nothing.
        rows: int64 (m,), ascending.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table[int(rows[0]) : int(rows[-1]) + 1][column]
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    return pc.fill_null(pc.binary_length(values), 0).to_numpy()[rows - rows[0]].astype(np.int64)
