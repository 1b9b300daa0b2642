"""The sections of the report about codes: how evenly and where they are used, and what the prior knows of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evaluation.report_charts import Map, Maps, Series, grid_map, line_chart, short
from evaluation.report_page import Section
from evaluation.report_published import Published, count, read_columns
from tessera import paths

DEPTHS = 4  # maps of a level, at most: one for each code of a position
CODES = 1024  # of a codebook that is drawn as a map, at most


def codes(run: Published) -> Section:
    """How evenly codes are used, and where."""
    section, layout = Section("codes", "Codes"), run.codes.layout
    histogram = read_columns(paths.RESULTS / "extract_codes" / "histogram.csv", "rank")
    tokens = run.training_tokens.numpy()
    training = len(run.codes["train"])
    seen = count(len(tokens), "training image") + (
        "" if len(tokens) == training else f" of {training:,}, a fixed choice"
    )
    used = run.evaluated["codebook"]
    section.add(
        "Histogram of the codes",
        [
            line_chart(
                _histogram(histogram, layout), "rank, as a part of the codebook", "share; 1 where all are used alike"
            )
        ],
        "Codes from the most frequent to the rarest. A flat line at 1 means that all codes are used alike; a line that "
        f"ends at 0 means that some are never used. In the test images {used['usage']:.1%} of the codes occur, with a "
        f"perplexity of {short(used['perplexity'])}.",
        "The flatter, the better: a code that is not used says nothing.",
        f"{count(len(run.codes['validation']), 'validation image')}.",
    )
    places, books = [], []
    for level, part in zip(layout.levels, layout.slices(), strict=True):
        grids = tokens[:, part].reshape(len(tokens), level.height, level.width, level.depth)
        name = f"Level {len(places) + 1}" if len(layout.levels) > 1 else "Codes"
        for depth in range(min(DEPTHS, level.depth)):
            title = f"{name}, code {depth + 1} of {level.depth}" if level.depth > 1 else name
            found = [[_perplexity(grids[:, y, x, depth]) for x in range(level.width)] for y in range(level.height)]
            places.append(grid_map(f"{title}: {level.height} x {level.width}", found, "codes"))
            size = level.depth_sizes[depth]
            if size <= CODES:
                books.append(_codebook(title, np.bincount(grids[..., depth].ravel(), minlength=size)))
    section.add(
        "How many codes each place uses",
        [Maps(places)],
        "The perplexity of the codes at each place: how many codes a place uses, if it used them all alike. Places "
        "with a low number show the same thing in most images, such as the ground.",
        "Neither direction is better by itself; a number near 1 over the whole grid means that the codes collapsed.",
        f"{seen}.",
    )
    if books:
        section.add(
            "Which codes are used",
            [Maps(books)],
            "Each square is a code of the codebook, in the codebook's order; the darker, the more often it occurs at "
            "this level, as this one of a position's codes. An empty square with a frame is a code that never occurs "
            "there. A codebook that several levels or codes of a position share has a map for each of them.",
            "The fewer empty squares and the more alike, the better.",
            f"{seen}.",
        )
    if any(max(level.depth_sizes) > CODES for level in layout.levels):
        section.notes.append(f"Codebooks of more than {CODES:,} codes are not drawn as squares.")
    if any(level.depth > DEPTHS for level in layout.levels):
        section.notes.append(f"Of the codes of a position, the first {DEPTHS} have maps.")
    return section


def _histogram(columns: dict[str, list[float]], layout: Any) -> list[Series]:
    """A curve for each level and depth. A code's share is 0 where it does not occur."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for level, depth, rank, share in zip(
        *(columns.get(n, []) for n in ("level", "depth", "rank", "share")), strict=True
    ):
        found.setdefault((int(level), int(depth)), []).append((rank, share))
    several, deep = len(layout.levels) > 1, any(level.depth > 1 for level in layout.levels)
    names = {
        (level, depth): (f"level {level + 1} " if several else "") + (f"code {depth + 1}" if deep else "")
        for level, depth in found
    }
    return [
        Series(names[key].strip() or "codes", *map(list, zip(*points, strict=True))) for key, points in found.items()
    ]


def _perplexity(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _codebook(title: str, counts: np.ndarray) -> Map:
    """A map of a codebook: how often each code occurs, against its even share."""
    side = math.ceil(math.sqrt(len(counts)))
    shares = [float(value) or None for value in counts / counts.sum() * len(counts)]
    shares += [math.nan] * (side * math.ceil(len(shares) / side) - len(shares))
    rows = [shares[start : start + side] for start in range(0, len(shares), side)]
    return grid_map(f"{title}: {len(counts):,} codes", rows, "times the even share", numbers=False)


def prior(run: Published) -> Section:
    """The nats of each token."""
    section, layout = Section("prior", "The prior, place by place"), run.codes.layout
    table = read_columns(paths.RESULTS / "train_prior" / "tokens.csv", "nats")
    nats, bounds = table.get("nats", []), "rate_prior_standard_error" in run.evaluated["bits_per_dim"]
    maps = []
    for number, (level, part) in enumerate(zip(layout.levels, layout.slices(), strict=True)):
        values = nats[part]
        if len(values) != level.tokens:
            continue
        name = f"Level {number + 1}" if len(layout.levels) > 1 else "Bits of each code"
        cube = np.reshape(np.array(values) / math.log(2), (level.height, level.width, level.depth))
        for depth in range(min(DEPTHS, level.depth)):
            title = f"{name}, code {depth + 1} of {level.depth}" if level.depth > 1 else name
            maps.append(
                grid_map(
                    f"{title}; {math.log2(level.depth_sizes[depth]):.3g} if uniform", cube[..., depth].tolist(), "bits"
                )
            )
    section.add(
        "Bits that the prior needs for each code",
        [Maps(maps) if maps else None],
        "How surprising each code is to the prior, given what it knows by then: the entropy by position. Most priors "
        "go row by row from the top left, so that the first codes have little to go by. A code that the prior cannot "
        "foresee at all takes the bits of the uniform prior, which stand in the title."
        + (" Here they are upper bounds: means over the orders in which codes may come." if bounds else ""),
        "Fewer bits are better, for the same codes.",
        f"{count(len(run.codes['validation']), 'validation image')}.",
    )
    if not maps:
        section.notes.append("Nats of each token are missing: run `python -m stage2_prior.train`.")
    return section
