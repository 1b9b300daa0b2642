"""The codes of a dataset on disk: the only thing that passes between the two stages.

    data/codes/manifest.json
               layout.json    {"classes": ["0", ...] or null, "layout": CodeLayout, "part_rows": 8192,
                               "splits": {"train": {"images": 1401, "passes": 18}, ...}}
               train/labels.npy                      int64 (n,), for labelled data only
               train/pass-000/codes-00000.npy ...    (up to part_rows, N), the smallest unsigned dtype
               train/pass-001/ ...                   flipped, shifted or drawn codes of the same images
               validation/ test/                     one pass each

Part p of a pass holds the images p * part_rows to (p + 1) * part_rows - 1. The codes of an image do not depend on the
other images, so any process may make any part, and extraction may stop after any part (`tessera.artifacts.parts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.artifacts.arrays import ArrayWriter, array_parts
from tessera.artifacts.checked import PartedArray, open_parts
from tessera.artifacts.datasets import Array, described, labels_at, open_labels, require
from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import Manifest, open_manifest
from tessera.artifacts.settled import settled
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

PART_ROWS = 8192  # images a part: seconds to minutes of encoding, and enough parts for many processes
DESCRIPTION = "layout.json"


class PassArray:
    """The tokens (passes, n, N) of a split, read from parts.

    Args:
        rows: all passes one after the other, (passes * n, N).
    """

    def __init__(self, rows: PartedArray | np.ndarray, passes: int) -> None:
        self.rows, self.dtype = rows, rows.dtype
        self.shape = (passes, len(rows) // passes, rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """`[pass]` or `[pass, image]`, each a number, a slice, or an array of numbers, with numpy's meaning."""
        which, images = key if isinstance(key, tuple) else (key, slice(None))
        passes, count, _ = self.shape
        if isinstance(which, slice):
            return np.stack([self[number, images] for number in range(passes)[which]])
        which = _in_range(which, passes)
        if not isinstance(images, slice):
            return self.rows[which * count + _in_range(images, count)]
        if which.ndim:
            return np.stack([self[number, images] for number in which])
        chosen, first = range(count)[images], int(which) * count
        if chosen.step == 1:
            return self.rows[first + chosen.start : first + chosen.stop]
        return self.rows[first + np.arange(chosen.start, chosen.stop, chosen.step)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)


def _in_range(indices: Any, count: int) -> np.ndarray:
    """Indices as an array; negative ones count from the end. A number too large would lead into the next pass."""
    indices = np.asarray(indices)
    indices = np.flatnonzero(indices) if indices.dtype == bool else indices
    if indices.size and (indices.min() < -count or indices.max() >= count):
        raise IndexError(f"expected indices below {count}, got {indices.min()} to {indices.max()}")
    return np.where(indices < 0, indices + count, indices)


@dataclass(frozen=True)
class CodeSplit:
    """The codes of one split.

    Attributes:
        tokens: (passes, n, N). Pass 0 is the images as they are; further passes are flipped or shifted copies, or drawn
            codes (training split only).
        labels: int64 (n,), or None for unlabelled data.
        largest: (N,) of the tokens' dtype, the largest value of each token.
        origin, remedy: the split's folder, and the advice for a damaged one; both for messages.
    """

    tokens: PassArray
    labels: Array | None
    largest: np.ndarray
    origin: str
    remedy: str

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @property
    def passes(self) -> int:
        return self.tokens.shape[0]

    def rows(self, indices: np.ndarray | slice, passes: np.ndarray | int = 0) -> torch.Tensor:
        """The int64 tokens (m, N) of the given images.

        Args:
            passes: the pass to read them from, one number or one for each image.

        Raises:
            UserError: what is read is damaged, or holds a code outside its codebook.
        """
        tokens = self.tokens[passes, indices]
        over = tokens > self.largest
        if over.any():
            token = int(over.any(0).argmax())
            raise UserError(
                f"{self.origin}: token {token} holds the code {tokens[:, token].max()}, but its codebook ends at "
                f"{self.largest[token]}; {self.remedy}"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def label_tensor(self, indices: np.ndarray | slice) -> torch.Tensor | None:
        """The int64 labels (m,) of the given images, or None for unlabelled data."""
        return labels_at(self.labels, indices)


@dataclass(frozen=True)
class Codes:
    """The published codes of a dataset. Codes are read from disk, and checked, when they are used.

    Attributes:
        splits: by name ("train", "validation", "test").
        layout: the shape of an image's codes.
        classes: the class names in the order of the labels; None for unlabelled data.
        manifest: of the folder.
    """

    splits: dict[str, CodeSplit]
    layout: CodeLayout
    classes: tuple[str, ...] | None
    manifest: Manifest

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 for unlabelled data."""
        return len(self.classes) if self.classes else 0

    def __getitem__(self, split: str) -> CodeSplit:
        return self.splits[split]


@dataclass(frozen=True)
class CodePart:
    """One part of the codes: some images of one pass over a split.

    Attributes:
        split: the split's name.
        number: of the pass.
        name: the part's file, relative to the folder of all codes.
        rows: the images.
    """

    split: str
    number: int
    name: str
    rows: slice


def code_parts(splits: dict[str, dict[str, int]], part_rows: int = PART_ROWS) -> list[CodePart]:
    """All parts of the codes, pass by pass and split by split.

    Args:
        splits: for each split its number of `images` and of `passes`.
    """
    return [
        CodePart(split, number, part.name, part.rows)
        for split, counts in splits.items()
        for number in range(counts["passes"])
        for part in array_parts(_pass_folder(split, number), "codes", counts["images"], part_rows)
    ]


def write_description(
    folder: Path,
    layout: CodeLayout,
    classes: tuple[str, ...] | None,
    splits: dict[str, dict[str, int]],
    labels: dict[str, Array],
    part_rows: int = PART_ROWS,
) -> None:
    """Write everything but the parts: layout.json, and the labels of each split.

    Args:
        folder: the folder that is to be published.
        classes: class names in the order of the labels, or None.
        splits: see `code_parts`.
        labels: int64 (n,) of each split; {} without labels.
    """
    for split, numbers in labels.items():
        with ArrayWriter(folder / split / "labels.npy", (), np.int64) as writer:
            writer.append(np.asarray(numbers))
    raw = {"layout": layout.to_json(), "classes": classes and list(classes), "splits": splits, "part_rows": part_rows}
    (folder / DESCRIPTION).write_text(json_text(raw), encoding="utf-8")


def _pass_folder(split: str, number: int) -> str:
    return f"{split}/pass-{number:03d}"


def _parsed(raw: dict[str, Any]) -> tuple[CodeLayout, tuple[str, ...] | None, dict[str, tuple[int, int]], int]:
    classes = None if raw["classes"] is None else tuple(raw["classes"])
    splits = {name: (split["passes"], split["images"]) for name, split in raw["splits"].items()}
    return CodeLayout.from_json(raw["layout"]), classes, splits, raw["part_rows"]


@settled
def open_codes(folder: Path) -> Codes:
    """Open what `extract_codes` published. Labels are checked now, codes when they are read.

    Raises:
        UserError: the folder is missing or damaged, or a label has no class.
    """
    manifest = open_manifest(folder, "codes")
    layout, classes, counts, part_rows = described(manifest, DESCRIPTION, _parsed)
    splits = {}
    for name, (passes, images) in counts.items():
        folders = [_pass_folder(name, number) for number in range(passes)]
        parts = [part for place in folders for part in open_parts(manifest, place, "codes", images, part_rows)]
        tokens = PartedArray(parts)
        require(tokens, layout.dtype, (passes * images, layout.num_tokens), manifest)
        labels = open_labels(manifest, name, images, len(classes or ()))
        largest = (layout.codebook_sizes.numpy() - 1).astype(layout.dtype)
        splits[name] = CodeSplit(PassArray(tokens, passes), labels, largest, str(folder / name), manifest.remedy)
    return Codes(splits, layout, classes, manifest)
