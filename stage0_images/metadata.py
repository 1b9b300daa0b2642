"""Reads labels from files named metadata.csv or metadata.jsonl, which lie beside images and name them.

The format is that of `imagefolder` in `datasets`: a row an image, with its path relative to the file in the column
`file_name`. `datasets` itself would stop at any other file of this name, and drop unnamed images without a word.
"""

from __future__ import annotations

import codecs
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from stage0_images.columns import Aside, shown, some_of
from stage0_images.labels import LABEL_NAMES
from stage0_images.parameters import DataParams
from stage0_images.reading import BadImage, SourceFile, encoded
from tessera.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"  # the column that names the images
LARGEST, PIECE = 2**30, 2**20  # bytes of such a file, and of the text that is checked at a time
IMAGE = "image"  # the column of images in the tables that are made here


@dataclass(frozen=True)
class Metadata:
    """What the metadata files of a folder say.

    Attributes:
        rows: the rows of all files that give labels, in one table. Its column `IMAGE` holds paths relative to the
            folder. None if no file gives labels.
        notes: for each metadata file that is not used, a sentence that says why.
    """

    rows: pa.Table | None
    notes: list[str]


def files_of(files: Iterable[str]) -> list[str]:
    """The metadata files among the files of a folder."""
    return [file for file in files if PurePosixPath(file).name in NAMES]


def read(files: Mapping[str, SourceFile], images: Collection[str], params: DataParams) -> Metadata:
    """Reads the metadata files that give labels.

    Args:
        files: all files of the folder, by their paths relative to it.
        images: the image files among them.

    Raises:
        UserError: some of the metadata files can be used and others cannot, or an image is named twice.
    """
    import pyarrow as pa

    if not params.use_labels:
        return Metadata(None, [])
    tables: dict[str, pa.Table] = {}
    notes = []
    for file in files_of(files):
        try:
            tables[file] = _usable(_rows(file, files), params)
        except ValueError as error:
            notes.append(f"{shown(file)}: not used, since {' '.join(str(error).split())}")
    if tables and notes:
        raise UserError(f"data.source: {params.source!r}: {notes[0]}; correct it as {next(iter(tables))}, or remove it")
    if not tables:
        return Metadata(None, notes)
    try:
        rows = pa.concat_tables(tables.values(), promote_options="permissive")
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.source: {params.source!r}: {', '.join(tables)} have columns of different types ({reason}); write "
            "each column alike in all of them"
        ) from error
    unnamed = rows[IMAGE].null_count
    rows = rows.filter(rows[IMAGE].is_valid())
    names = rows[IMAGE].to_pylist()
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"data.source: {params.source!r}: metadata names {twice} twice; keep one of the rows")
    if not set(names).intersection(images):
        return Metadata(None, [f"{some_of(list(map(shown, tables)))}: not used, since no image that it names is there"])
    if unnamed:
        notes.append(f"rows of metadata without a {FILE}: {unnamed}")
    gone = sorted(set(names).difference(files))
    if gone:
        notes.append(f"metadata names {len(gone)} files that are not there: {', '.join(gone[:3])}")
    return Metadata(rows, notes)


def _rows(file: str, files: Mapping[str, SourceFile]) -> pa.Table:
    """The rows of a metadata file, with paths relative to the folder. Raises ValueError with the reason."""
    import pyarrow as pa
    from pyarrow import csv, json

    try:
        with encoded(files[file], LARGEST) as data:
            _require_utf8(data)
            if file.endswith(".csv"):
                # An empty field is no label, but any text is one, "NA" too.
                values = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
                lines = csv.ParseOptions(newlines_in_values=True)
                table = csv.read_csv(pa.BufferReader(data), None, lines, values)
            else:
                table = json.read_json(pa.BufferReader(data))
    except (BadImage, pa.ArrowException) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    columns = ", ".join(table.column_names)
    if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise ValueError(f"it has the column {twice[0]} more than once (its columns: {columns})")
    if FILE not in table.column_names:
        raise ValueError(f"it has no column {FILE}, which would name the images (its columns: {columns})")
    place, names = PurePosixPath(file).parent, table[FILE].to_pylist()
    names = [None if name in (None, "") else _path(str(name), place, files) for name in names]
    if not any(names):
        raise ValueError(f"it has no row with a {FILE}")
    others = {name: table[name] for name in table.column_names if name not in (FILE, IMAGE)}
    return pa.table({IMAGE: pa.array(names, pa.string()), **others})


def _path(name: str, place: PurePosixPath, files: Collection[str]) -> str:
    """An image's path relative to the folder.

    Paths that Windows wrote have backslashes. Elsewhere, a backslash may be a part of a file's name.
    """
    path = posixpath.normpath(place / name)
    return path if path in files else posixpath.normpath(place / name.replace("\\", "/"))


def _require_utf8(data: bytes) -> None:
    """Checks a file's text a piece at a time. pyarrow would give bytes in place of texts, or fail later."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), PIECE):
            decoder.decode(data[start : start + PIECE], final=start + PIECE >= len(data))
    except UnicodeDecodeError as error:
        raise ValueError("its text is not UTF-8; save it as UTF-8") from error


def _usable(rows: pa.Table, params: DataParams) -> pa.Table:
    """The rows as they are. Raises ValueError with the reason if they give no labels."""
    columns = rows.column_names[1:]
    if params.label_column not in columns and not any(name.lower() in LABEL_NAMES for name in columns):
        raise ValueError(
            f"it has no column label or class (its columns: {', '.join([FILE, *columns])}); data.label_column names "
            "another"
        )
    return rows


def tables(rows: pa.Table, splits: dict[str, list[str]]) -> tuple[dict[str, datasets.Dataset], list[Aside]]:
    """Joins the rows with the images that they name.

    Args:
        rows: from `read`.
        splits: the image files of each split, relative to the folder.

    Returns:
        The table of each split, without validation and test splits of which no image is named; and the images that no
        row names.
    """
    import datasets
    import pyarrow as pa

    place = {name: index for index, name in enumerate(rows[IMAGE].to_pylist())}
    found, aside = {}, []
    for split, files in splits.items():
        named = [file for file in files if file in place]
        aside += [
            Aside(shown(file), "not named in metadata", "no metadata file names it")
            for file in files
            if file not in place
        ]
        if not named and split != "train":
            continue
        chosen = rows.take(pa.array([place[file] for file in named], pa.int64()))
        paths = pa.array(named, pa.string())
        table = datasets.Dataset(chosen.set_column(0, IMAGE, paths))
        found[split] = table.cast_column(IMAGE, datasets.Image(decode=False))
    return found, aside
