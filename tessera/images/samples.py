"""Sampled images on disk, in parts.

    results/sample/manifest.json
                   samples.json                   {"classes": 10, "image_shape": [1, 8, 8], "images": 1000,
                                                   "kinds": ["default", "unguided"], "part_rows": 1024}
                   default/images-00000.npy ...   uint8 (up to part_rows, C, H, W)
                   default/labels.npy             int64 (n,), the class that each image was sampled for
                   unguided/                      the same

Image i depends on the seed and on i alone, so any process may make any part, and sampling may stop after any part
(`tessera.artifacts.parts`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tessera.artifacts.arrays import ArrayWriter, array_parts, part_name
from tessera.artifacts.checked import PartedArray, open_parts
from tessera.artifacts.datasets import described, open_labels, require
from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import open_manifest
from tessera.artifacts.settled import settled
from tessera.images.prepared import ImageSplit

PART_ROWS = 1024  # images a part: minutes of work for a slow prior
DESCRIPTION = "samples.json"


@dataclass(frozen=True)
class SamplePart:
    """One part of the samples: some images of one kind.

    Attributes:
        kind: the name of the kind.
        name: the part's file, relative to the folder of all samples.
        rows: the images' numbers in the run, from 0.
    """

    kind: str
    name: str
    rows: slice


def part_rows(batch_size: int | None) -> int:
    """The number of images in a part: about `PART_ROWS`, and a multiple of the batch size.

    So a batch has the same images whoever draws it.

    Args:
        batch_size: images drawn at once; None: as many as memory holds.
    """
    return max(1, PART_ROWS // batch_size) * batch_size if batch_size else PART_ROWS


def sample_parts(kinds: Iterable[str], images: int, part_rows: int) -> list[SamplePart]:
    """All parts of the samples, kind by kind.

    Args:
        images: number of images of each kind.
        part_rows: number of images in each part but the last.
    """
    return [
        SamplePart(kind, part.name, part.rows)
        for kind in kinds
        for part in array_parts(kind, "images", images, part_rows)
    ]


def written_images(folder: Path, rows: np.ndarray, part_rows: int) -> torch.Tensor:
    """Reads some of the images that were written for one kind of samples, before they are published.

    Args:
        folder: with the parts of this kind (`SamplePart`), each an array of images.
        rows: int64 (m,), which images, counted from 0 through all parts.
        part_rows: number of images in each part but the last.

    Returns:
        uint8 (m, C, H, W), in the order of `rows`.
    """
    parts = {number: folder / part_name("images", number) for number in np.unique(rows // part_rows).tolist()}
    maps = {number: np.lib.format.open_memmap(path, mode="r") for number, path in parts.items()}
    return torch.from_numpy(np.stack([maps[row // part_rows][row % part_rows] for row in rows.tolist()]))


def write_description(
    folder: Path,
    kinds: Iterable[str],
    images: int,
    image_shape: tuple[int, ...],
    classes: int,
    part_rows: int,
    labels: np.ndarray | None,
) -> None:
    """Write everything but the parts: samples.json, and the labels of each kind.

    Args:
        folder: the folder that is to be published.
        images: number of images of each kind.
        part_rows: number of images in each part but the last.
        labels: int64 (images,), the class that each image was sampled for, or None without classes.
    """
    kinds = list(kinds)
    for kind in kinds if labels is not None else ():
        with ArrayWriter(folder / kind / "labels.npy", (), np.int64) as writer:
            writer.append(labels)
    raw = {
        "kinds": kinds,
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
