"""Figures of the codes that an extraction has made: how often they are used, and what refinement changed."""

from __future__ import annotations

import numpy as np
import torch

from tessera.artifacts.parts import PartFolder
from tessera.codes.figures import CodeCounts
from tessera.codes.layout import CodeLayout
from tessera.codes.store import CodePart

HISTOGRAM_ROWS = 512
MEASURED = ("train", "validation")  # the test split's figures are left to `evaluate`, which measures test once


def gains_of(part: CodePart, refine: int) -> str | None:
    """The file, beside a part of refined codes, of what refinement changed; None where it is not reported."""
    reported = refine and part.number == 0 and part.split in MEASURED
    return part.name.replace("codes-", "gains-") if reported else None


def counted(layout: CodeLayout, folder: PartFolder, split: str, parts: list[CodePart]) -> CodeCounts:
    """How often each code occurs in the first pass over a split, which is the images as they are."""
    counts = CodeCounts(layout)
    for part in parts:
        if (part.split, part.number) == (split, 0):
            tokens = np.load(folder.path(part.name))
            counts.add(layout.unflatten(torch.from_numpy(tokens.astype(np.int64))))
    return counts


def gained(layout: CodeLayout, folder: PartFolder, split: str, parts: list[CodePart]) -> dict[str, float]:
    """What refinement changed in the first pass over a split: -log p(x | z) in bits per dimension, and tokens."""
    names = [gains_of(part, 1) for part in parts if (part.split, part.number) == (split, 0)]
    before, after, changed = np.concatenate([np.load(folder.path(name)) for name in names]).mean(0).tolist()
    return {
        "bits_per_dim_distortion": layout.bits_per_dim(after),
        "bits_per_dim_distortion_of_the_encoder": layout.bits_per_dim(before),
        "tokens_changed": changed / layout.num_tokens,
    }


def by_figure(levels: list[dict[str, float]]) -> dict[str, list[float]]:
    """The figures of each level, as a list of the levels' values for each figure."""
    return {figure: [level[figure] for level in levels] for figure in levels[0]}


def histogram(counts: list[torch.Tensor]) -> list[dict[str, float]]:
    """Rows of the code histogram, from the most used code to the least used one.

    Args:
        counts: int64 (depth, K) for each level.

    Returns:
        At most HISTOGRAM_ROWS evenly spaced rows for each level and depth. `rank` is the code's rank by use divided by
        K, so that codebooks of all sizes share an axis: 1/K for the most used code, 1 for the least used one. `share`
        is the code's share of all codes times K, which is 1 for every code of an evenly used codebook.
    """
    rows = []
    for level, count in enumerate(counts):
        for depth, used in enumerate(count):
            size = len(used)
            shares = used.sort(descending=True).values.double() * size / used.sum()
            for place in torch.linspace(0, size - 1, min(size, HISTOGRAM_ROWS)).round().long().tolist():
                rank, share = (place + 1) / size, shares[place].item()
                rows.append({"level": level, "depth": depth, "rank": rank, "share": share})
    return rows
