"""Arrays and codes in parts, as stages publish them, for the tests of those who read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tessera.artifacts.arrays import ArrayPart, ArrayWriter
from tessera.codes.layout import CodeLayout
from tessera.codes.store import code_parts, write_description


def write_parts(folder: Path, parts: Iterable[ArrayPart], rows: np.ndarray) -> None:
    """Write an array (n, ...) in parts."""
    for part in parts:
        with ArrayWriter(folder / part.name, rows.shape[1:], rows.dtype) as writer:
            writer.append(rows[part.rows])


def write_codes(
    folder: Path,
    layout: CodeLayout,
    classes: tuple[str, ...] | None,
    tokens: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    part_rows: int = 8192,
) -> None:
    """Write tokens (passes, n, N) and labels (n,) of each split; {} without labels."""
    splits = {name: {"images": found.shape[1], "passes": found.shape[0]} for name, found in tokens.items()}
    for part in code_parts(splits, part_rows):
        with ArrayWriter(folder / part.name, (layout.num_tokens,), layout.dtype) as writer:
            writer.append(tokens[part.split][part.number][part.rows])
    write_description(folder, layout, classes, splits, labels, part_rows)
