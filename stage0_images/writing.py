"""Writes the images and labels of each split. Threads decode images, and several processes share each split."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stage0_images import reading
from stage0_images.columns import PORTION_ROWS, SourceImage
from stage0_images.dividing import Part
from stage0_images.parameters import DataParams
from stage0_images.pixels import FAINT, BadImage, background_pixel, decoding, read_image
from stage0_images.quarantine import Quarantine
from tessera.artifacts.arrays import ArrayWriter, join_pieces
from tessera.artifacts.files import flush
from tessera.console import Bar
from tessera.distributed import sum_over_processes, world

if TYPE_CHECKING:
    from accelerate import Accelerator

# A thread is given a portion of the source's rows at a time, so that handing them over costs little, but no more than
# TASK_BYTES of decoded images.
TASK_BYTES = 2**22


@dataclass
class Written:
    """What was written of one split.

    Attributes:
        images: number of good images.
        histogram: how often each pixel value 0..255 occurs, int64 (256,).
        classes: how many good images each class has, int64 (classes,).
        hidden: how many good images show nothing but the background.
        refused: the rows of the quarantine.
    """

    images: int
    histogram: np.ndarray
    classes: np.ndarray
    hidden: int
    refused: list[dict[str, Any]]


class SplitFiles:
    """images.npy of a split and, for labelled data, labels.npy, which all processes of a run write together.

    Each process decodes some consecutive rows of the split. It writes the good images one after the other, from the
    place on that its first row has if no image is refused. At the end the main process moves the pieces together.

    Args:
        folder: of the split.
        part: the rows of the source.
        params: the section `data` of params.yaml.
    """

    def __init__(self, folder: Path, part: Part, params: DataParams) -> None:
        self.part, self.background = part, background_pixel(params)
        self.rank, self.size = world()
        self.files = {folder / "images.npy": ((params.channels, params.height, params.width), np.uint8)}
        if part.split.labels is not None:
            self.files[folder / "labels.npy"] = ((), np.int64)

    def _start(self, rank: int) -> int:
        """The first row of a process."""
        return len(self.part.rows) * rank // self.size

    @property
    def own(self) -> Part:
        """The rows of this process."""
        return Part(self.part.split, self.part.rows[self._start(self.rank) : self._start(self.rank + 1)])

    def create(self) -> None:
        """Make empty files. The main process does, before any process writes."""
        for path, (shape, dtype) in self.files.items():
            ArrayWriter(path, shape, dtype).close()

    def write(self, blocks: Iterator[list], classes: int, bar: Bar) -> Written:
        """Write the rows of this process.

        Args:
            blocks: what `decoded` yields for `own`.
            classes: number of classes.
        """
        labels, quarantine = self.part.split.labels, Quarantine(len(self.own.rows))
        written = Written(0, np.zeros(256, np.int64), np.zeros(classes, np.int64), 0, quarantine.rows)
        start = self._start(self.rank)
        with contextlib.ExitStack() as stack:
            images, *numbers = [
                stack.enter_context(ArrayWriter(path, shape, dtype, start))
                for path, (shape, dtype) in self.files.items()
            ]
            for block in blocks:
                kept = [(row, result) for row, _, result in block if not isinstance(result, BadImage)]
                for row, file, result in block:
                    if isinstance(result, BadImage):
                        quarantine.add(self.part.split.name, int(row), file, str(result))
                if kept:
                    pixels = np.stack([pixels for _, pixels in kept])
                    written.histogram += np.bincount(pixels.ravel(), minlength=256)
                    written.images += len(pixels)
                    written.hidden += int((_difference(pixels, self.background) < FAINT).sum())
                    images.append(pixels)
                for writer in numbers if kept else ():
                    found = labels[[row for row, _ in kept]]
                    writer.append(found)
                    written.classes += np.bincount(found, minlength=classes)
                bar.update(len(block))
        for path in self.files:
            flush(path)
        return written

    def join(self, counts: list[int]) -> None:
        """Make one array of what the processes wrote. The main process does, after all have written.

        Args:
            counts: number of images that each process wrote.
        """
        pieces = [slice(self._start(rank), self._start(rank) + count) for rank, count in enumerate(counts)]
        for path, (shape, dtype) in self.files.items():
            join_pieces(path, shape, dtype, pieces)


def _difference(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The largest difference of each image from the background, of uint8 (B, C, H, W) and uint8 (C, 1, 1): (B,)."""
    return (np.maximum(pixels, background) - np.minimum(pixels, background)).max(axis=(1, 2, 3))


def decoded(part: Part, params: DataParams, pool: Executor, ahead: int) -> Iterator[list]:
    """Decode images in threads, and yield the results in order.

    Args:
        ahead: the largest number of tasks whose results wait to be taken. It bounds the memory in use.

    Yields:
        For each task a list of (row, file, result). The result is uint8 (C, H, W), or the `BadImage`.
    """

    def read(images: list[SourceImage], held: contextlib.ExitStack) -> list[np.ndarray | BadImage]:
        results: list[np.ndarray | BadImage] = []
        with held:
            for image in images:
                try:
                    results.append(read_image(image.content, params))
                except BadImage as error:
                    results.append(error)
        return results

    most = max(1, min(PORTION_ROWS, TASK_BYTES // (params.channels * params.height * params.width)))
    waiting: deque = deque()
    for rows, size in part.split.portions(part.rows, most):
        with contextlib.ExitStack() as held:
            held.enter_context(reading.FETCHED.holding(size))
            images = part.split.fetch(rows)
            waiting.append((rows, [image.file for image in images], pool.submit(read, images, held.pop_all())))
        del images  # or it would be here until the next portion takes its place
        if len(waiting) >= ahead:
            rows, files, result = waiting.popleft()
            yield list(zip(rows, files, result.result(), strict=True))
    for rows, files, result in waiting:
        yield list(zip(rows, files, result.result(), strict=True))


def write_splits(files: dict[str, SplitFiles], classes: int, params: DataParams, threads: int) -> dict[str, Written]:
    """Write this process's rows of every split.

    Args:
        classes: number of classes.
        threads: number of threads that decode images.
    """
    # With one thread, reading and writing wait for decoding: one core is busy at a time.
    ahead = 2 * threads if threads > 1 else 1
    total = sum(len(split.own.rows) for split in files.values())
    with decoding(), ThreadPoolExecutor(threads) as pool, Bar(total, "prepare", "image") as bar:
        return {
            name: split.write(decoded(split.own, params, pool, ahead), classes, bar) for name, split in files.items()
        }


def gathered(
    written: dict[str, Written], folder: Path, processes: Accelerator
) -> tuple[dict[str, Written], dict[str, list[int]]]:
    """What all processes wrote of each split, and the number of images that each process wrote.

    Refused images are gathered for the main process only, in the order that one process would meet them in.

    Args:
        folder: one that all processes see and that is empty. It keeps their lists of refused images.
    """
    rank, size = world()
    (folder / f"refused-{rank}.json").write_text(json.dumps({name: own.refused for name, own in written.items()}))
    processes.wait_for_everyone()
    lists = [json.loads((folder / f"refused-{rank}.json").read_text()) for rank in range(size)]
    whole, counts = {}, {}
    for name, own in written.items():
        images, hidden = np.zeros(size, np.int64), np.array([own.hidden])
        images[rank] = own.images
        parts = [torch.from_numpy(part).to(processes.device) for part in (images, own.histogram, own.classes, hidden)]
        images, histogram, classes, hidden = (sum_over_processes(part).cpu().numpy() for part in parts)
        refused = [row for found in lists for row in found[name]]
        whole[name], counts[name] = (
            Written(int(images.sum()), histogram, classes, int(hidden[0]), refused),
            images.tolist(),
        )
    return whole, counts
