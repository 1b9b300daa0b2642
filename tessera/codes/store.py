"""The codes of a dataset on disk: the only thing that passes between the two stages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tessera.artifacts.arrays import open_array
from tessera.artifacts.manifests import REMEDY, Manifest, read_manifest
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

CHECK_ROWS = 65536  # codes are checked in blocks: the whole need not fit in memory


@dataclass(frozen=True)
class CodeSplit:
    """One split: `tokens` (passes, n, N), memory-mapped, and `labels` int64 (n,) or None.

    Pass 0 is the images as they are; further passes are flipped or shifted copies (training split only).
    """

    tokens: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @property
    def passes(self) -> int:
        return self.tokens.shape[0]

    def rows(self, indices: np.ndarray | slice, passes: np.ndarray | int = 0) -> torch.Tensor:
        """int64 tokens (m, N) of the given images, from the given pass (one, or one an image)."""
        return torch.from_numpy(self.tokens[passes, indices].astype(np.int64))

    def label_tensor(self, indices: np.ndarray | slice) -> torch.Tensor | None:
        """int64 labels (m,) of the given images, or None."""
        return None if self.labels is None else torch.from_numpy(np.array(self.labels[indices], dtype=np.int64))


@dataclass(frozen=True)
class Codes:
    """The codes of a dataset: splits by name, layout, class names and manifest."""

    splits: dict[str, CodeSplit]
    layout: CodeLayout
    classes: tuple[str, ...] | None
    manifest: Manifest

    @property
    def num_classes(self) -> int:
        return len(self.classes) if self.classes else 0

    def __getitem__(self, split: str) -> CodeSplit:
        return self.splits[split]


def open_codes(folder: Path) -> Codes:
    """Open what `extract_codes` published, every byte checked.

    Raises:
        UserError: missing or damaged, or a code outside its codebook.
    """
    manifest = read_manifest(folder, "codes")
    raw = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
    layout = CodeLayout.from_json(raw["layout"])
    classes = None if raw["classes"] is None else tuple(raw["classes"])
    splits = {}
    for name, (passes, images) in raw["splits"].items():
        tokens = open_array(folder / name / "codes.npy")
        if tokens.shape != (passes * images, layout.num_tokens):
            raise UserError(f"{folder / name}: codes of shape {tokens.shape}, layout.json says {(passes, images)}")
        for start in range(0, len(tokens), CHECK_ROWS):
            over = tokens[start : start + CHECK_ROWS].max(0, initial=0) >= layout.codebook_sizes.numpy()
            if over.any():
                raise UserError(
                    f"{folder / name}: token {int(over.argmax())} holds a code beyond its codebook of "
                    f"{int(layout.codebook_sizes[over.argmax()])}; make it anew with `{REMEDY['codes']}`"
                )
        labels = folder / name / "labels.npy"
        splits[name] = CodeSplit(
            tokens.reshape(passes, images, layout.num_tokens), open_array(labels) if labels.exists() else None
        )
    return Codes(splits, layout, classes, manifest)
