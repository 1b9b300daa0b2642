"""Turn any image source into checked, resized, split images in data/prepared.

    python -m stage0_images.prepare

`data.source` in params.yaml names the images. Images that cannot be used, and files that are not read, are listed in
data/prepared/quarantine.jsonl (tessera/images/prepared.py lists the other files). The same source and parameters give
the same bytes.

If too many images cannot be used, the list goes to data/quarantine.jsonl. After an error data/prepared is as it was
before. `dvc repro` deletes it before this stage starts, though, as it does with the outputs of every stage.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.console import Bar, waiting
from tessera.errors import UserError
from tessera.launch.threads import number_of_threads
from tessera.parameters import Params

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    import numpy as np

    from stage0_images.columns import Source, SourceImage
    from stage0_images.dividing import Part
    from stage0_images.parameters import DataParams
    from stage0_images.quarantine import Quarantine
    from tessera.images.prepared import Stats

USES = ("data",)  # the sections of params.yaml that change what this stage makes

# A thread is given this many images at a time, so that handing them over costs little, but no more than TASK_BYTES of
# decoded images.
TASK_IMAGES = 32
TASK_BYTES = 2**22

REFUSED = paths.PREPARED.with_name("quarantine.jsonl")  # the list of refused images where there are too many
# A warning is given if training pixels span fewer of the 256 values than DARK and the first images are grey with more
# than 8 bits, or fewer than BLANK.
DARK, BLANK, LOOKED_AT = 128, 16, 16
NAMED = 5  # classes that a line names


def decoded(part: Part, params: DataParams, pool: Executor, ahead: int) -> Iterator[list]:
    """Decode a split's images in threads, and yield the results in order.

    Args:
        ahead: the largest number of tasks whose results wait to be taken. It bounds the memory in use.

    Yields:
        For each task a list of (row, file, result). The result is uint8 (C, H, W), or the `BadImage`.
    """
    from stage0_images.pixels import BadImage, read_image

    def read(images: list[SourceImage]) -> list[np.ndarray | BadImage]:
        results: list[np.ndarray | BadImage] = []
        for image in images:
            try:
                results.append(read_image(image.content, params))
            except BadImage as error:
                results.append(error)
        return results

    size = max(1, min(TASK_IMAGES, TASK_BYTES // (params.channels * params.height * params.width)))
    waiting: deque = deque()
    for start in range(0, len(part.rows), size):
        rows = part.rows[start : start + size]
        images = part.split.fetch(rows)
        waiting.append((rows, [image.file for image in images], pool.submit(read, images)))
        if len(waiting) >= ahead:
            rows, files, result = waiting.popleft()
            yield list(zip(rows, files, result.result(), strict=True))
    for rows, files, result in waiting:
        yield list(zip(rows, files, result.result(), strict=True))


def write_split(
    part: Part, folder: Path, params: DataParams, blocks: Iterator[list], quarantine: Quarantine, bar: Bar
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Write images.npy and, for labelled data, labels.npy.

    Returns:
        How often each pixel value 0..255 occurs, int64 (256,); and the labels of the good images, in pieces.
    """
    import contextlib

    import numpy as np

    from stage0_images.pixels import BadImage
    from tessera.artifacts.arrays import ArrayWriter

    labels, histogram, written = part.split.labels, np.zeros(256, np.int64), []
    shape = (params.channels, params.height, params.width)
    with contextlib.ExitStack() as stack:
        image_file = stack.enter_context(ArrayWriter(folder / "images.npy", shape, np.uint8))
        if labels is not None:
            label_file = stack.enter_context(ArrayWriter(folder / "labels.npy", (), np.int64))
        for block in blocks:
            kept = [(row, result) for row, _, result in block if not isinstance(result, BadImage)]
            for row, file, result in block:
                if isinstance(result, BadImage):
                    quarantine.add(part.split.name, int(row), file, str(result))
            if kept:
                pixels = np.stack([pixels for _, pixels in kept])
                histogram += np.bincount(pixels.ravel(), minlength=256)
                image_file.append(pixels)
                if labels is not None:
                    written.append(labels[[row for row, _ in kept]])
                    label_file.append(written[-1])
            bar.update(len(block))
    return histogram, written


def mean_and_variance(histogram: np.ndarray) -> tuple[float, float]:
    """The mean and variance of pixels in [-1, 1], computed exactly and then rounded once.

    Args:
        histogram: how often each value 0..255 occurs, int64 (256,).
    """
    from fractions import Fraction

    counts = [int(count) for count in histogram]
    n = sum(counts)
    first = Fraction(sum(c * v for v, c in enumerate(counts)), n)
    second = Fraction(sum(c * v * v for v, c in enumerate(counts)), n)
    scale = Fraction(2, 255)
    return float(first * scale - 1), float((second - first**2) * scale**2)


def write_all(source: Source, staging: Path, params: Params) -> list[str]:
    """Write every split, stats.json and quarantine.jsonl into `staging`. Returns a summary, and further lines.

    Raises:
        UserError: too many images were refused, or all training pixels are equal.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from stage0_images.dividing import divide
    from stage0_images.pixels import decoding
    from stage0_images.quarantine import Quarantine
    from tessera.artifacts.files import json_text
    from tessera.images.prepared import Stats

    parts = divide(source, params.data)
    quarantine = Quarantine(sum(len(part.rows) for part in parts.values()), source.aside)
    threads = number_of_threads(params.runtime.threads)
    # With one thread, reading and writing wait for decoding: one core is busy at a time.
    ahead = 2 * threads if threads > 1 else 1
    histograms: dict[str, np.ndarray] = {}
    labels: dict[str, list[np.ndarray]] = {}
    with (
        decoding(),
        ThreadPoolExecutor(threads) as pool,
        Bar(quarantine.total, "prepare", "image") as bar,
    ):
        for name, part in parts.items():
            blocks = decoded(part, params.data, pool, ahead)
            histograms[name], labels[name] = write_split(part, staging / name, params.data, blocks, quarantine, bar)
    shape = (params.data.channels, params.data.height, params.data.width)
    counts = {name: int(histogram.sum()) // math.prod(shape) for name, histogram in histograms.items()}
    quarantine.check(params.data, counts, REFUSED)
    classes = len(source.classes or ())
    by_class = {
        n: np.bincount(np.concatenate(found), minlength=classes).tolist() for n, found in labels.items() if found
    }
    figures = mean_and_variance(histograms["train"])
    stats = Stats(shape, source.classes, counts, *figures, params.data.preparation(), by_class)
    if not stats.variance:
        raise UserError(
            f"data.source: {params.data.source!r}: every training pixel has the same value: there is nothing to learn; "
            "check the images, data.image_column, data.background and data.grey_range"
        )
    (staging / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
    quarantine.write(staging / "quarantine.jsonl")
    said = [*source.notes, *_about_range(histograms["train"], parts["train"], params.data), *_about_classes(stats)]
    return [summary(stats, quarantine, source), *said]


def summary(stats: Stats, quarantine: Quarantine, source: Source) -> str:
    """What was prepared, in one line."""
    each = ", ".join(f"{name} {count}" for name, count in stats.images.items())
    classes = f"{stats.num_classes} classes" if stats.classes else "no labels"
    unused = f"; splits not used: {', '.join(source.unused)}" if source.unused else ""
    refused = quarantine.summary(paths.PREPARED / "quarantine.jsonl")
    return f"{each} images of {'x'.join(map(str, stats.image_shape))}, {classes}, {refused}{unused}"


def _about_range(histogram: np.ndarray, train: Part, params: DataParams) -> list[str]:
    """A warning if the training pixels span a small part of the range.

    Args:
        histogram: how often each value occurs among training pixels, int64 (256,).
    """
    from stage0_images.pixels import decoding, largest_grey

    values = histogram.nonzero()[0]
    span = f"the training pixels lie between {values[0]} and {values[-1]} of 0 to 255"
    if values[-1] - values[0] >= DARK:
        return []
    if params.grey_range is None:
        with decoding():
            found = [largest_grey(image.content) for image in train.split.fetch(train.rows[:LOOKED_AT])]
        if largest := max((value for value in found if value is not None), default=None):
            bits = max(8, largest.bit_length())
            return [
                f"warning: {span}, because the grey values of the first images reach {largest} of 65535; "
                f"data.grey_range: [0, {2**bits - 1}] would make {2**bits - 1} white"
            ]
    return [f"warning: {span}; are these the right images?"] if values[-1] - values[0] < BLANK else []


def _about_classes(stats: Stats) -> list[str]:
    """A warning if classes have no training image."""
    absent = []
    if stats.classes:
        absent = [n for n, count in zip(stats.classes, stats.class_counts["train"], strict=True) if not count]
    if not absent:
        return []
    names = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
    missing = f"{len(absent)} of {stats.num_classes} classes have no training image"
    return [f"warning: {missing}, so they are never sampled: {names}"]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Open the source and publish its images."""
    from stage0_images.sources import open_source
    from tessera.artifacts.publishing import publishing, scratch

    # `datasets` copies a parquet dataset into this folder. /tmp would be a bad place, since it may be in memory.
    with scratch(paths.PREPARED.with_name("source")) as cache:
        with waiting("opening the source"):
            source = open_source(params.data, cache)
        with publishing(paths.PREPARED, "prepared", parents={}) as staging:
            lines = write_all(source, staging, params)
    print("\n".join(f"{paths.PREPARED}: {line}" for line in lines))


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
