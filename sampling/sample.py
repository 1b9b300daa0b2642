"""Sample images from the published models.

    python -m sampling.sample

Reads models/vqvae and models/prior, and writes results/sample (tessera/images/samples.py lists its files). default/ has
images that were sampled with the parameters of params.yaml. unguided/ has images that were sampled at temperature 1
without guidance or filters. grid.png shows the first images of default/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tessera import entry, paths
from tessera.parameters import Params

USES = ("sampling",)  # the sections of params.yaml that change what this stage makes

GRID_CLASSES = 50  # largest number of rows in the grid; of more classes the first 50 are shown


def write_grid(folder: Path, count: int, classes: int, columns: int, path: Path) -> None:
    """Write a picture of the first of `count` sampled images: a row for each class, or a square without classes."""
    import math

    import torch

    from tessera.images.grids import image_grid, save_grid
    from tessera.images.samples import written_images

    if classes and count >= classes:
        columns, rows = min(columns, count // classes), min(classes, GRID_CLASSES)
        places = (torch.arange(columns) * classes + torch.arange(rows)[:, None]).flatten()
    else:
        places = torch.arange(min(count, columns**2))
        columns = math.isqrt(len(places) - 1) + 1
    save_grid(image_grid(written_images(folder, places.numpy()), columns), path)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Sample `sampling.images` images of each kind and publish them."""
    import time
    from dataclasses import asdict, fields

    from sampling.pipeline import TwoStagePipeline
    from sampling.settings import Settings
    from tessera.artifacts.publishing import publishing
    from tessera.images.pixels import to_uint8
    from tessera.images.samples import write_description, write_samples
    from tessera.launch.devices import configure_torch

    configure_torch(params.runtime.threads)
    pipeline = TwoStagePipeline.load(paths.MODELS, precision=params.sampling.precision)
    section = params.sampling
    run_settings = {"seed": section.seed, "batch_size": section.batch_size}
    settings = Settings.checked(pipeline.layout, {f.name: getattr(section, f.name) for f in fields(Settings)})
    kinds = {"default": asdict(settings), "unguided": asdict(settings.unguided())}
    with publishing(paths.SAMPLES, "samples", pipeline.parents) as folder:
        began = time.monotonic()
        labels = pipeline.check_labels("each", section.images)
        for kind, chosen in kinds.items():
            batches = pipeline.batches(section.images, "each", **chosen, **run_settings)
            pixels = (to_uint8(images).numpy() for images in batches)
            write_samples(folder / kind, pixels, None if labels is None else labels.numpy())
        seconds = time.monotonic() - began
        classes, columns = pipeline.num_classes, section.grid_columns
        write_grid(folder / "default", section.images, classes, columns, folder / "grid.png")
        write_description(folder, kinds, section.images, pipeline.layout.image_shape, classes)
    images = len(kinds) * section.images
    print(f"{paths.SAMPLES}: {images} images in {seconds:.1f} s, {images / seconds:.0f} images a second")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
