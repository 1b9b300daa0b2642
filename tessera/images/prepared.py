"""Prepared images on disk: uint8 (n, C, H, W) and labels of each split, with statistics beside them.

    data/prepared/manifest.json
                  stats.json                 what later stages may know about the data (`Stats`)
                  quarantine.jsonl           the images that were refused, with reasons
                  train/images.npy           uint8 (n, C, H, W)
                  train/labels.npy           int64 (n,), for labelled data only
                  validation/ test/          the same

Nothing is loaded: rows are read from the files when they are used, and checked then (`CheckedArray`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.artifacts.checked import CheckedArray
from tessera.artifacts.datasets import Array, copied, described, labels_at, open_labels, require
from tessera.artifacts.manifests import Manifest, open_manifest
from tessera.artifacts.settled import settled


@dataclass(frozen=True)
class Stats:
    """What later stages may know about the data: the contents of stats.json.

    Attributes:
        image_shape: (C, H, W).
        classes: the labels' names in the order of the labels, or None for unlabelled data.
        images: the number of images in each split.
        class_counts: the number of images of each class in each split, in the order of the classes; {} without labels.
            A class may have none in training, where only another split shows it: it is never trained on.
        mean, variance: of the training pixels in [-1, 1], over all channels. The NMSE is divided by this variance.
        preparation: how an image becomes one of these (`stage0_images.parameters.Preparation`), as JSON values.
    """

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    images: dict[str, int]
    mean: float
    variance: float
    preparation: dict[str, Any] = field(default_factory=dict)
    class_counts: dict[str, list[int]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 for unlabelled data."""
        return len(self.classes) if self.classes else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Stats:
        classes = None if raw["classes"] is None else tuple(raw["classes"])
        shape, counts = tuple(raw["image_shape"]), raw["class_counts"]
        return cls(shape, classes, raw["images"], raw["mean"], raw["variance"], raw["preparation"], counts)


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: int64 (n,), or None for unlabelled data.
    """

    images: Array
    labels: Array | None

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: np.ndarray | slice) -> torch.Tensor:
        """The uint8 pixels (m, C, H, W) of the given rows, as a copy."""
        return torch.from_numpy(copied(self.images, indices))

    def label_tensor(self, indices: np.ndarray | slice) -> torch.Tensor | None:
        """The int64 labels (m,) of the given rows, or None for unlabelled data."""
        return labels_at(self.labels, indices)


@dataclass(frozen=True)
class PreparedImages:
    """The prepared dataset: its splits by name, statistics and manifest."""

    splits: dict[str, ImageSplit]
    stats: Stats
    manifest: Manifest

    def __getitem__(self, split: str) -> ImageSplit:
        return self.splits[split]


@settled
def open_prepared(folder: Path) -> PreparedImages:
    """Open what `prepare` published. Labels are checked now, images when they are read.

    Raises:
        UserError: the folder is missing or damaged, or a label has no class.
    """
    manifest = open_manifest(folder, "prepared")
    stats = described(manifest, "stats.json", Stats.from_json)
    splits = {}
    for name, count in stats.images.items():
        images = CheckedArray(manifest, f"{name}/images.npy")
        require(images, np.dtype(np.uint8), (count, *stats.image_shape), manifest)
        splits[name] = ImageSplit(images, open_labels(manifest, name, count, stats.num_classes))
    return PreparedImages(splits, stats, manifest)
