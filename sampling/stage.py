"""The stage `sample`: images sampled part by part, by any number of processes, and published."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sampling import options
from sampling.edits import tell_of_edits
from sampling.labels import Classes
from sampling.parameters import SamplingParams
from sampling.pictures import GRID_CLASSES, classes_in_rows, legend, square
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.artifacts.parts import PartFolder, identity
from tessera.artifacts.publishing import publishing
from tessera.console import Bar
from tessera.images.grids import image_grid, save_grid
from tessera.images.pixels import to_uint8
from tessera.images.samples import SamplePart, part_rows, sample_parts, write_description, written_images
from tessera.launch.devices import accelerator
from tessera.launch.shares import Share
from tessera.parameters import Params


def sample(params: Params, module: str, uses: tuple[str, ...], share: Share | None = None) -> None:
    """Sample `sampling.images` images of each kind. Each process makes parts of its own; the main process publishes.

    Args:
        module: the entry point, a dotted name.
        uses: the sections of params.yaml that it uses.
        share: the parts that this process makes, without publishing; None: all that are missing.
    """
    section, processes = params.sampling, accelerator(params.runtime, apart=True)
    pipeline = TwoStagePipeline.load(paths.MODELS, processes.device, section.precision, section.decoder)
    tell_of_edits(pipeline, params)
    settings = options.settings_of(section, pipeline)
    kinds = {"default": asdict(settings), "unguided": asdict(settings.unguided())}
    parts = sample_parts(kinds, section.images, part_rows(section.batch_size))
    with PartFolder("sample", identity(module, uses, params, pipeline.parents), processes, share) as folder:
        began = time.monotonic()
        make_parts(pipeline, section, kinds, parts, folder)
        if share:
            print(f"share {share}: {len(folder.left)} parts made")
            return
        folder.wait([part.name for part in parts])
        seconds = time.monotonic() - began
        if processes.is_main_process:
            shown = publish(pipeline, section, list(kinds), parts, folder)
            drawn = sum(part.rows.stop - part.rows.start for part in parts if part.name in set(folder.left))
            print(f"{paths.SAMPLES}: {drawn} images in {seconds:.1f} s, {drawn / seconds:.0f} images a second")
            if names := legend(shown, pipeline.classes):
                print(f"{paths.SAMPLE_GRID}: {names}")
    processes.wait_for_everyone()


def make_parts(
    pipeline: TwoStagePipeline,
    section: SamplingParams,
    kinds: dict[str, dict[str, Any]],
    parts: list[SamplePart],
    folder: PartFolder,
) -> None:
    """Sample the parts that this process has to make.

    Args:
        kinds: the sampling settings of each kind.
    """
    wanted = set(folder.missing([part.name for part in parts]))
    mine = [part for part in parts if part.name in wanted]
    with Bar(sum(part.rows.stop - part.rows.start for part in mine), "sample", "image") as bar:
        for part in mine:
            places = {"start": part.rows.start, "seed": section.seed, "batch_size": section.batch_size, "bar": bar}
            batches = pipeline.batches(part.rows.stop - part.rows.start, "each", **kinds[part.kind], **places)
            with folder.writing(part.name, pipeline.layout.image_shape, np.uint8) as writer:
                for images in batches:
                    writer.append(to_uint8(images).numpy())


def publish(
    pipeline: TwoStagePipeline, section: SamplingParams, kinds: list[str], parts: list[SamplePart], folder: PartFolder
) -> tuple[int, ...]:
    """Publish the samples, with a picture of the first ones. Returns the indices of the classes that it names."""
    rows, labels = part_rows(section.batch_size), pipeline.check_labels("each", section.images)
    labels = None if labels is None else labels.numpy()
    with publishing(paths.SAMPLES, "samples", pipeline.parents) as staging:
        folder.link([part.name for part in parts], staging)
        shape, classes = pipeline.layout.image_shape, pipeline.num_classes
        write_description(staging, kinds, section.images, shape, classes, rows, labels)
        return write_grid(staging, section, rows, pipeline.classes)


def write_grid(staging: Path, section: SamplingParams, part_rows: int, classes: Classes) -> tuple[int, ...]:
    """Write grid.png, the first images of default/: a row for each class, or a square without classes.

    Args:
        staging: the folder that is to be published.
        part_rows: number of images in each part but the last.

    Returns:
        The indices of the classes that have a row.
    """
    count, columns, trained = section.images, section.grid_columns, len(classes.trained)
    if trained and count >= trained:
        columns, shown = min(columns, count // trained), classes.trained[:GRID_CLASSES]
        places = (torch.arange(columns) * trained + torch.arange(len(shown))[:, None]).flatten()
        pixels = written_images(staging / "default", places.numpy(), part_rows)
        picture = classes_in_rows(pixels, list(shown), columns, classes)
    else:
        shown, places = (), torch.arange(min(count, columns**2))
        picture = image_grid(written_images(staging / "default", places.numpy(), part_rows), square(len(places)))
    save_grid(picture, staging / paths.SAMPLE_GRID.name)
    return shown
