"""How many codes of each codebook occur, where depths and levels may share a codebook. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tessera.codes.layout import CodeLayout
    from tessera.codes.store import CodeSplit

BLOCK = 1024  # images whose codes are read at once

Books = list[list[tuple[int, int]]]  # the (level, depth) of the codes of each codebook


@dataclass(frozen=True)
class Usage:
    """How many codes occur in some images: means over codebooks.

    Attributes:
        share: of the codes that occur at least once, from 0 to 1.
        expected: the expected value of `share` if all codes were equally likely.
        where: which codes these are, as it follows "the codes"; empty for all.
    """

    share: float
    expected: float
    where: str = ""


def codebooks(layout: CodeLayout, config: dict[str, Any]) -> Books:
    """The codebooks by which it is judged whether many codes are not used.

    A shared codebook is one codebook. Where the levels are scales with a codebook each, only those of the finest scale
    count: a coarse scale has few positions and needs few codes.

    Args:
        config: of the VQ-VAE that made the codes.
    """
    shared = config["quantizer"].get("shared_by_levels", False)
    by_depth = list(_of_depths(config["quantizer"]))
    levels = range(len(layout.levels))
    if config.get("scales") and not shared:
        levels = levels[-1:]
    found: dict[Hashable, list[tuple[int, int]]] = {}
    for level in levels:
        for depth, key in enumerate(by_depth):
            found.setdefault((None if shared else level, key), []).append((level, depth))
    return list(found.values())


def _of_depths(quantizer: dict[str, Any]) -> Iterator[Hashable]:
    """Which codebook of a level each code of a position is of, in the order of its codes.

    Args:
        quantizer: the configuration of a quantizer.
    """
    chosen = quantizer[quantizer["name"]]
    if "quantizer" not in chosen:
        yield ()
        return
    for part in range(chosen.get("depth") or chosen["groups"]):
        for key in _of_depths(chosen["quantizer"]):
            yield key if chosen["share_codebook"] else (part, key)


def expected_share(layout: CodeLayout, books: Books, images: int) -> float:
    """The expected share of codes that occur at least once in so many images, if all codes were equally likely."""
    shares = []
    for book in books:
        positions = sum(layout.levels[level].height * layout.levels[level].width for level, _ in book)
        shares.append(1 - (1 - 1 / _size(layout, book)) ** (images * positions))
    return sum(shares) / len(shares)


def _size(layout: CodeLayout, book: list[tuple[int, int]]) -> int:
    return max(layout.levels[level].depth_sizes[depth] for level, depth in book)


def measured(split: CodeSplit, rows: np.ndarray, layout: CodeLayout, config: dict[str, Any]) -> Usage:
    """How many codes occur in some images of a split.

    Args:
        rows: int64 (n,), which images.
        config: of the VQ-VAE that made the codes.
    """
    books = codebooks(layout, config)
    seen = [np.zeros(_size(layout, book), dtype=bool) for book in books]
    parts = layout.slices()
    for start in range(0, len(rows), BLOCK):
        tokens = split.rows(rows[start : start + BLOCK]).numpy()
        for found, book in zip(seen, books, strict=True):
            for level, depth in book:
                found[tokens[:, parts[level]][:, depth :: layout.levels[level].depth]] = True
    share = float(np.mean([found.mean() for found in seen]))
    finest = len(layout.levels) > 1 and all(level == len(layout.levels) - 1 for book in books for level, _ in book)
    return Usage(share, expected_share(layout, books, len(rows)), " of the finest scale" if finest else "")
