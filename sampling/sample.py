"""Sample images from the published models.

    python -m sampling.sample

Reads models/vqvae and models/prior. Writes results/sample: default/ at the parameters of params.yaml, unguided/ at
temperature 1 without guidance or filters (uint8 images.npy and, with classes, labels.npy), and grid.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline

USES = ("sampling",)  # the sections of params.yaml that change what this stage makes

GRID_CLASSES = 50  # rows of the grid at most; with more classes, the first ones


def write_samples(folder: Path, pipeline: TwoStagePipeline, count: int, settings: dict[str, Any]) -> None:
    """Sample `count` images, the classes in turn, and write them as they come."""
    import numpy as np

    from tessera.artifacts.arrays import ArrayWriter
    from tessera.images.pixels import to_uint8

    with ArrayWriter(folder / "images.npy", pipeline.layout.image_shape, np.uint8) as writer:
        for images in pipeline.batches(count, **settings):
            writer.append(to_uint8(images).numpy())
    labels = pipeline.check_labels(None, count)
    if labels is not None:
        np.save(folder / "labels.npy", labels.numpy())


def write_grid(folder: Path, classes: int, columns: int, path: Path) -> None:
    """The first images of a sampled folder: a row per class, or a square where there are no classes."""
    import math

    import torch

    from tessera.images.grids import image_grid, save_grid
    from tessera.images.prepared import open_split

    split = open_split(folder)
    if classes and len(split) >= classes:
        columns, rows = min(columns, len(split) // classes), min(classes, GRID_CLASSES)
        places = torch.arange(columns) * classes + torch.arange(rows)[:, None]
        pixels = split.pixels(places.flatten().numpy())
    else:
        pixels = split.pixels(slice(0, columns**2))
        columns = math.isqrt(len(pixels) - 1) + 1
    save_grid(image_grid(pixels, columns), path)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Sample `sampling.images` images of each kind, and publish them with the grid."""
    import time
    from dataclasses import asdict, fields

    from sampling.pipeline import TwoStagePipeline
    from sampling.settings import Settings
    from tessera.artifacts.publishing import publishing
    from tessera.launch.devices import configure_torch

    configure_torch(params.runtime.threads)
    pipeline = TwoStagePipeline.load(paths.MODELS, precision=params.sampling.precision)
    section = params.sampling
    run_settings = {"seed": section.seed, "batch_size": section.batch_size}
    settings = Settings.checked(pipeline.layout, {f.name: getattr(section, f.name) for f in fields(Settings)})
    kinds = {"default": asdict(settings), "unguided": asdict(settings.unguided())}
    with publishing(paths.SAMPLES, "samples", pipeline.parents) as folder:
        began = time.monotonic()
        for kind, settings in kinds.items():
            write_samples(folder / kind, pipeline, section.images, settings | run_settings)
        seconds = time.monotonic() - began
        write_grid(folder / "default", pipeline.num_classes, section.grid_columns, folder / "grid.png")
    images = len(kinds) * section.images
    print(f"{paths.SAMPLES}: {images} images in {seconds:.1f} s, {images / seconds:.0f} images a second")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
