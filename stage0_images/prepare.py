"""Turn any image source into checked, resized, split images in data/prepared.

    python -m stage0_images.prepare

`data.source` in params.yaml names the images. Images that cannot be used are listed in data/prepared/quarantine.jsonl
(tessera/images/prepared.py lists the other files). The same source and parameters give the same bytes. After an error
data/prepared is as it was before.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tessera import entry, paths
from tessera.errors import UserError
from tessera.launch.threads import number_of_threads
from tessera.parameters import Params

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    import numpy as np
    from tqdm import tqdm

    from stage0_images.columns import Source, SourceImage, SourceSplit
    from stage0_images.parameters import DataParams

USES = ("data",)  # the sections of params.yaml that change what this stage makes

# A thread is given this many images at a time, so that handing them over costs little, but no more than TASK_BYTES of
# decoded images.
TASK_IMAGES = 32
TASK_BYTES = 2**22


@dataclass(frozen=True)
class Part:
    """What one prepared split is made of: some rows of one of the source's splits."""

    split: SourceSplit
    rows: np.ndarray


@dataclass
class Quarantine:
    """The images that were refused so far.

    Attributes:
        total: the number of all images, good and bad.
        rows: for each refused image its split and index in the source, its file if known, and the reason.
    """

    total: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, split: str, index: int, file: str | None, reason: str, params: DataParams) -> None:
        """Record a refused image.

        Raises:
            UserError: more than `data.max_bad_fraction` of all images are now refused. The message has the first three
                reasons.
        """
        self.rows.append({"split": split, "index": index, "file": file, "reason": reason})
        if len(self.rows) > params.max_bad_fraction * self.total:
            first = "; ".join(f"{row['split']} {row['file'] or row['index']}: {row['reason']}" for row in self.rows[:3])
            raise UserError(
                f"data.source: {params.source!r}: {len(self.rows)} of {self.total} images refused so far, over "
                f"data.max_bad_fraction ({params.max_bad_fraction}); mend or remove them, or raise it; first: {first}"
            )


def divide(source: Source, params: DataParams) -> dict[str, Part]:
    """Divide the source's images into train, validation and test.

    A split that the source has is used as it is. A missing one is drawn from the training images with the random seed
    `data.split_seed`.

    Raises:
        UserError: nothing would be left to train on.
    """
    import numpy as np

    from tessera.randomness import seed_of

    train = source.splits["train"]
    order = np.random.Generator(np.random.Philox(seed_of("split", params.split_seed))).permutation(train.count)
    parts = {}
    for name, fraction in (("test", params.test_fraction), ("validation", params.validation_fraction)):
        if name in source.splits:
            parts[name] = Part(source.splits[name], np.arange(source.splits[name].count))
        else:
            size = max(1, round(fraction * train.count))
            parts[name] = Part(train, np.sort(order[:size]))
            order = order[size:]
    parts["train"] = Part(train, np.sort(order))
    empty = [name for name, part in parts.items() if not len(part.rows)]
    if empty:
        raise UserError(
            f"data.source: {params.source!r}: the split {empty[0]} would be empty: {train.count} training images; add "
            f"images, or lower data.validation_fraction ({params.validation_fraction}) and data.test_fraction "
            f"({params.test_fraction})"
        )
    return {name: parts[name] for name in paths.SPLITS}


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
    part: Part, folder: Path, params: DataParams, blocks: Iterator[list], quarantine: Quarantine, bar: tqdm
) -> np.ndarray:
    """Write images.npy and, for labelled data, labels.npy.

    Returns:
        How often each pixel value 0..255 occurs, int64 (256,).

    Raises:
        UserError: too many images were refused, or all of this split.
    """
    import contextlib

    import numpy as np

    from stage0_images.pixels import BadImage
    from tessera.artifacts.arrays import ArrayWriter

    labels, histogram = part.split.labels, np.zeros(256, np.int64)
    shape = (params.channels, params.height, params.width)
    with contextlib.ExitStack() as stack:
        image_file = stack.enter_context(ArrayWriter(folder / "images.npy", shape, np.uint8))
        if labels is not None:
            label_file = stack.enter_context(ArrayWriter(folder / "labels.npy", (), np.int64))
        for block in blocks:
            kept = [(row, result) for row, _, result in block if not isinstance(result, BadImage)]
            for row, file, result in block:
                if isinstance(result, BadImage):
                    quarantine.add(part.split.name, int(row), file, str(result), params)
            if kept:
                pixels = np.stack([pixels for _, pixels in kept])
                histogram += np.bincount(pixels.ravel(), minlength=256)
                image_file.append(pixels)
                if labels is not None:
                    label_file.append(labels[[row for row, _ in kept]])
            bar.update(len(block))
    if not histogram.any():
        raise UserError(
            f"data.source: {params.source!r}: all {len(part.rows)} images for {folder.name} were refused; mend them; "
            f"the last: {quarantine.rows[-1]['reason']}"
        )
    return histogram


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


def write_all(source: Source, staging: Path, params: Params) -> str:
    """Write every split, stats.json and quarantine.jsonl into `staging`. Returns a summary of one line."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from stage0_images.pixels import decoding
    from tessera.artifacts.files import json_text
    from tessera.images.prepared import Stats

    parts = divide(source, params.data)
    quarantine = Quarantine(sum(len(part.rows) for part in parts.values()))
    threads = number_of_threads(params.runtime.threads)
    # With one thread, reading and writing wait for decoding: one core is busy at a time.
    ahead = 2 * threads if threads > 1 else 1
    histograms: dict[str, np.ndarray] = {}
    with (
        decoding(),
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=quarantine.total, desc="prepare", unit="image", disable=None) as bar,
    ):
        for name, part in parts.items():
            blocks = decoded(part, params.data, pool, ahead)
            histograms[name] = write_split(part, staging / name, params.data, blocks, quarantine, bar)
    shape = (params.data.channels, params.data.height, params.data.width)
    counts = {name: int(histogram.sum()) // math.prod(shape) for name, histogram in histograms.items()}
    stats = Stats(shape, source.classes, counts, *mean_and_variance(histograms["train"]), params.data.preparation())
    if not stats.variance:
        raise UserError(
            f"data.source: {params.data.source!r}: every training pixel has the same value: there is nothing to learn; "
            "check the images, data.image_column and data.background"
        )
    (staging / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in quarantine.rows]
    # A file name that is not UTF-8 is written with JSON's own escapes.
    (staging / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    classes = f"{stats.num_classes} classes" if stats.classes else "no labels"
    unused = f"; splits not used: {', '.join(source.unused)}" if source.unused else ""
    return f"{each} images of {'x'.join(map(str, shape))}, {classes}, {len(quarantine.rows)} refused{unused}"


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Open the source and publish its images."""
    from stage0_images.sources import open_source
    from tessera.artifacts.publishing import publishing, scratch

    # `datasets` copies a parquet dataset into this folder. /tmp would be a bad place, since it may be in memory.
    with scratch(paths.PREPARED.with_name("source")) as cache:
        source = open_source(params.data, cache)
        with publishing(paths.PREPARED, "prepared", parents={}) as staging:
            summary = write_all(source, staging, params)
    print(f"{paths.PREPARED}: {summary}")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
