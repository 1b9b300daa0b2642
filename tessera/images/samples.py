"""Sampled images on disk, in parts.

    results/sample/manifest.json
                   samples.json                   {"classes": 10, "image_shape": [1, 8, 8], "images": 1000,
                                                   "kinds": ["default", "unguided"], "part_rows": 1024}
                   default/images-00000.npy ...   uint8 (up to part_rows, C, H, W)
                   default/labels.npy             int64 (n,), the class that each image was sampled for
                   unguided/                      the same

Parts are put in place one by one, in order (`tessera.artifacts.arrays.PartWriter`). Image i depends on the seed and on
i alone, so sampling may stop after any part and go on with the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from tessera.artifacts.arrays import ArrayWriter, PartWriter, part_name
from tessera.artifacts.checked import PartedArray, open_parts
from tessera.artifacts.datasets import described, open_labels, require
from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import open_manifest
from tessera.artifacts.settled import settled
from tessera.images.prepared import ImageSplit

PART_ROWS = 1024  # images a part: minutes of work for a slow prior
DESCRIPTION = "samples.json"


def write_samples(
    folder: Path, batches: Iterable[np.ndarray], labels: np.ndarray | None, part_rows: int = PART_ROWS
) -> None:
    """Write the samples of one kind while they come.

    Args:
        folder: of this kind, inside the folder that is to be published.
        batches: uint8 (m, C, H, W), at least one.
        labels: int64 (n,), the class of each image, or None.
    """
    batches = iter(batches)
    first = next(batches)
    with PartWriter(folder, "images", first.shape[1:], np.uint8, part_rows) as writer:
        writer.append(first)
        for batch in batches:
            writer.append(batch)
    if labels is not None:
        with ArrayWriter(folder / "labels.npy", (), np.int64) as writer:
            writer.append(labels)


def written_images(folder: Path, rows: np.ndarray, part_rows: int = PART_ROWS) -> torch.Tensor:
    """Images uint8 (m, C, H, W) that `write_samples` has just written, before the folder is published.

    Args:
        folder: of this kind.
        rows: int64 (m,).
    """
    parts = {number: folder / part_name("images", number) for number in np.unique(rows // part_rows).tolist()}
    maps = {number: np.load(path, mmap_mode="r", allow_pickle=False) for number, path in parts.items()}
    return torch.from_numpy(np.stack([maps[row // part_rows][row % part_rows] for row in rows.tolist()]))


def write_description(
    folder: Path,
    kinds: Iterable[str],
    images: int,
    image_shape: tuple[int, ...],
    classes: int,
    part_rows: int = PART_ROWS,
) -> None:
    """Write samples.json: what `open_samples` must know to read the parts."""
    raw = {
        "kinds": list(kinds),
        "images": images,
        "image_shape": list(image_shape),
        "classes": classes,
        "part_rows": part_rows,
    }
    (folder / DESCRIPTION).write_text(json_text(raw), encoding="utf-8")


@settled
def open_samples(folder: Path) -> dict[str, ImageSplit]:
    """Open what `sample` published: the images of each kind (`default`, `unguided`), with labels if there are classes.

    Raises:
        UserError: the folder is missing or damaged, or a label has no class.
    """
    manifest = open_manifest(folder, "samples")
    names = ("kinds", "images", "image_shape", "classes", "part_rows")
    kinds, images, shape, classes, part_rows = described(manifest, DESCRIPTION, lambda raw: [raw[n] for n in names])
    found = {}
    for kind in kinds:
        array = PartedArray(open_parts(manifest, kind, "images", images, part_rows))
        require(array, np.dtype(np.uint8), (images, *shape), manifest)
        found[kind] = ImageSplit(array, open_labels(manifest, kind, images, classes))
    return found
