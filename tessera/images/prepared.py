"""Prepared images on disk: uint8 (n, C, H, W), memory-mapped, with labels and statistics beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.artifacts.arrays import open_array
from tessera.artifacts.manifests import Manifest, read_manifest
from tessera.errors import UserError


@dataclass(frozen=True)
class Stats:
    """stats.json: what later stages may know about the data.

    `variance` is that of the training pixels in [-1, 1], over all channels: the denominator of the NMSE. `classes` are
    the label names in label order, or None for unlabelled data. `images` counts each split. `preparation`: how an image
    becomes one of these (`stage0_images.parameters.Preparation`), as JSON values.
    """

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    images: dict[str, int]
    mean: float
    variance: float
    preparation: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.classes) if self.classes else 0

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict) -> Stats:
        classes = None if raw["classes"] is None else tuple(raw["classes"])
        return cls(tuple(raw["image_shape"]), classes, raw["images"], raw["mean"], raw["variance"], raw["preparation"])


@dataclass(frozen=True)
class ImageSplit:
    """One split: `images` uint8 (n, C, H, W) and `labels` int64 (n,) or None, both memory-mapped."""

    images: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: np.ndarray | slice) -> torch.Tensor:
        """uint8 pixels (m, C, H, W) of the given rows, copied out of the map."""
        return torch.from_numpy(np.array(self.images[indices]))

    def label_tensor(self, indices: np.ndarray | slice) -> torch.Tensor | None:
        """int64 labels (m,) of the given rows, or None."""
        return None if self.labels is None else torch.from_numpy(np.array(self.labels[indices], dtype=np.int64))


@dataclass(frozen=True)
class PreparedImages:
    """The prepared dataset: its splits by name, statistics and manifest."""

    splits: dict[str, ImageSplit]
    stats: Stats
    manifest: Manifest

    def __getitem__(self, split: str) -> ImageSplit:
        return self.splits[split]


def open_split(folder: Path) -> ImageSplit:
    """Open images.npy and, where there is one, labels.npy of a folder."""
    labels = folder / "labels.npy"
    return ImageSplit(open_array(folder / "images.npy"), open_array(labels) if labels.exists() else None)


def open_prepared(folder: Path) -> PreparedImages:
    """Open what `prepare` published. Sizes are checked, contents are not read (they may be larger than memory).

    Raises:
        UserError: missing or damaged.
    """
    manifest = read_manifest(folder, "prepared", contents=False)
    stats = Stats.from_json(json.loads((folder / "stats.json").read_text(encoding="utf-8")))
    splits = {name: open_split(folder / name) for name in stats.images}
    for name, split in splits.items():
        if split.images.shape != (stats.images[name], *stats.image_shape):
            raise UserError(
                f"{folder / name}: images of shape {split.images.shape}, stats.json says "
                f"{(stats.images[name], *stats.image_shape)}; make it anew with `python -m stage0_images.prepare`"
            )
    return PreparedImages(splits, stats, manifest)
