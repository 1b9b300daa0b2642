"""Turn any image source into checked, resized, split images in data/prepared.

    python -m stage0_images.prepare

`data.source` in params.yaml names the images. Images that cannot be used, and files that are not read, are listed in
data/prepared/quarantine.jsonl (tessera/images/prepared.py lists the other files). The same source and parameters give
the same bytes, whatever the number of processes and threads.

If too many images cannot be used, or all training pixels are equal, the list goes to data/quarantine.jsonl. After an
error data/prepared is as it was before. `dvc repro` deletes it before this stage starts, though, as it does with the
outputs of every stage.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.console import waiting
from tessera.errors import UserError
from tessera.launch.threads import number_of_threads
from tessera.parameters import Params

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator

    from stage0_images.columns import Source
    from stage0_images.dividing import Part
    from stage0_images.parameters import DataParams
    from stage0_images.quarantine import Quarantine
    from stage0_images.writing import Written
    from tessera.images.prepared import Stats

USES = ("data",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.threads, or data.max_pixels"  # by which it takes less memory

REFUSED = paths.PREPARED.with_name("quarantine.jsonl")  # the list if nothing is prepared
# A warning is given if training pixels span fewer of the 256 values than DARK and the first images are grey with more
# than 8 bits, or fewer than BLANK.
DARK, BLANK, LOOKED_AT = 128, 16, 16
HIDDEN = 0.01  # of the training images; if more than that show nothing, it is a warning


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


def write_all(source: Source, staging: Path, cache: Path, params: Params, processes: Accelerator) -> list[str]:
    """Write every split, stats.json and quarantine.jsonl into `staging`. Returns a summary, and further lines.

    All processes decode images. The main process does the rest, and the others return no lines.

    Args:
        cache: an existing folder for lists that processes exchange.

    Raises:
        UserError: too many images were refused, or all training pixels are equal.
    """
    from stage0_images.dividing import divide
    from stage0_images.quarantine import Quarantine
    from stage0_images.writing import SplitFiles, gathered, write_splits
    from tessera.artifacts.files import json_text
    from tessera.images.prepared import Stats

    parts = divide(source, params.data)
    files = {name: SplitFiles(staging / name, part, params.data) for name, part in parts.items()}
    for split in files.values() if processes.is_main_process else ():
        split.create()
    processes.wait_for_everyone()
    own = write_splits(files, len(source.classes or ()), params.data, number_of_threads(params.runtime.threads))
    written, counts = gathered(own, cache, processes)
    if not processes.is_main_process:
        return []
    for name, split in files.items():
        split.join(counts[name])
    refused = [row for found in written.values() for row in found.refused]
    quarantine = Quarantine(sum(len(part.rows) for part in parts.values()), source.aside, refused)
    images = {name: found.images for name, found in written.items()}
    quarantine.check(params.data, images, REFUSED)
    shape = (params.data.channels, params.data.height, params.data.width)
    by_class = {name: found.classes.tolist() for name, found in written.items() if parts[name].split.labels is not None}
    histogram = written["train"].histogram
    figures = mean_and_variance(histogram)
    stats = Stats(shape, source.classes, images, *figures, params.data.preparation(), by_class)
    if not stats.variance:
        listed = f"; {REFUSED} lists what was refused or left aside" if quarantine.keep(REFUSED) else ""
        raise UserError(
            f"data.source: {params.data.source!r}: every training pixel has the same value: there is nothing to learn; "
            f"check the images, data.image_column, data.background and data.grey_range{listed}"
        )
    (staging / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
    quarantine.write(staging / "quarantine.jsonl")
    said = [*source.notes, *_about_range(histogram, parts["train"], params.data)]
    said += [*_about_background(written["train"], params.data), *_about_classes(stats)]
    return [summary(stats, quarantine, source), *said]


def summary(stats: Stats, quarantine: Quarantine, source: Source) -> str:
    """What was prepared, in one line."""
    each = ", ".join(f"{name} {count}" for name, count in stats.images.items())
    classes = f"{stats.num_classes} classes" if stats.classes else "no labels"
    refused = quarantine.summary(paths.PREPARED / "quarantine.jsonl")
    line = f"{each} images of {'x'.join(map(str, stats.image_shape))}, {classes}, {refused}"
    return "; ".join(filter(None, (line, source.splits_left_out)))


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
            images = train.split.images(train.rows[:LOOKED_AT])
            found = [largest_grey(image.content, params.max_pixels) for image in images]
        if largest := max((value for value in found if value is not None), default=None):
            bits = max(8, largest.bit_length())
            return [
                f"warning: {span}, because the grey values of the first images reach {largest} of 65535; "
                f"data.grey_range: [0, {2**bits - 1}] would make {2**bits - 1} white"
            ]
    return [f"warning: {span}; are these the right images?"] if values[-1] - values[0] < BLANK else []


def _about_background(train: Written, params: DataParams) -> list[str]:
    """A warning if training images show nothing but the background, as white drawings on a white one."""
    if train.hidden <= HIDDEN * train.images:
        return []
    return [
        f"warning: {train.hidden} of {train.images} training images show nothing but data.background "
        f"({', '.join(map(str, params.background))}); if they are transparent drawings, set another colour"
    ]


def _about_classes(stats: Stats) -> list[str]:
    """A warning if classes have no training image."""
    from stage0_images.columns import some_of

    absent = []
    if stats.classes:
        absent = [n for n, count in zip(stats.classes, stats.class_counts["train"], strict=True) if not count]
    if not absent:
        return []
    missing = f"{len(absent)} of {stats.num_classes} classes have no training image"
    return [f"warning: {missing}, so they are never sampled: {some_of(absent)}"]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Open the source and publish its images. Processes share the images; the main process publishes them.

    Raises:
        UserError: see `open_source` and `write_all`; or the processes do not see the same working folder.
    """
    from contextlib import nullcontext
    from pathlib import Path

    from stage0_images.sources import open_source
    from tessera.artifacts.publishing import publishing, scratch
    from tessera.distributed import largest_over_processes, text_of_main
    from tessera.launch.devices import accelerator

    processes = accelerator(params.runtime, apart=True)
    main, lines = processes.is_main_process, []

    def shared(folder: Path | None) -> Path:
        """A folder of the main process. All look for it before any goes on: the main process may fail and remove it."""
        found = Path(text_of_main(str(folder), processes.device))
        if largest_over_processes(int(not found.is_dir()), processes.device):
            raise UserError(
                f"{found}: the first process made this folder, and not every process finds it; the machines of one run "
                "need one shared working folder"
            )
        return found

    # `datasets` copies a parquet dataset into this folder. /tmp would be a bad place, since it may be in memory.
    with scratch(paths.PREPARED.with_name("source")) if main else nullcontext() as folder:
        cache = shared(folder)
        # The main process opens the source first, so that the others find the copy.
        with processes.main_process_first(), waiting("opening the source"):
            source = open_source(params.data, cache)
        with publishing(paths.PREPARED, "prepared", parents={}) if main else nullcontext() as folder:
            lines = write_all(source, shared(folder), cache, params, processes)
        processes.wait_for_everyone()
    if main:
        print("\n".join(f"{paths.PREPARED}: {line}" for line in lines))


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
