"""Sample images from the published models.

    python -m sampling.sample
    python -m sampling.sample --complete IMAGE --mask MASK [--class N] [--count 8] [--output completed.png]

Reads models/vqvae and models/prior. Writes results/sample: default/ at the parameters of params.yaml, unguided/ at
temperature 1 without guidance or filters (uint8 images.npy and, with classes, labels.npy), and grid.png.

With --complete it writes one picture instead: the image where the mask is white, and completions of it. A code is given
where all the pixels that it stands for are; the others are sampled, by an autoregressive prior in the order of its
sequence, so that they answer to given codes before them only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import entry, paths
from tessera.errors import UserError
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
    from tessera.distributed import one_process

    one_process(params.runtime.threads, "sampling.sample")
    if (arguments.complete is None) != (arguments.mask is None):
        raise UserError("--complete IMAGE and --mask MASK go together; give both")
    for name in ("label", "count", "output") if arguments.complete is None else ():
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('label', 'class')} is about --complete IMAGE; give both, or neither")
    count = 8 if arguments.count is None else arguments.count
    if count < 1:
        raise UserError(f"--count: expected at least 1, got {count}")
    pipeline = TwoStagePipeline.load(paths.MODELS, precision=params.sampling.precision)
    section, common = params.sampling, {"seed": params.sampling.seed, "batch_size": params.sampling.batch_size}
    settings = Settings.checked(pipeline.layout, {f.name: getattr(section, f.name) for f in fields(Settings)})
    if arguments.complete is not None:
        from sampling.complete import complete, read_given, write

        wanted, found = pipeline.layout.image_shape, (params.data.channels, params.data.height, params.data.width)
        if wanted != found:
            raise UserError(
                f"data.channels, height and width are {found} in params.yaml, but the models were trained on {wanted}; "
                "set them back, or train again with `dvc repro`"
            )
        image, known = read_given(arguments.complete, arguments.mask, params.data)
        whole, output = asdict(settings) | common, arguments.output or Path("completed.png")
        write(complete(pipeline, image, known, count, arguments.label, whole), output, section.grid_columns)
        guided = " without guidance, as there is no --class" if pipeline.num_classes and arguments.label is None else ""
        print(f"{output}: {known.float().mean():.0%} of the pixels given, {count} completions{guided}")
        return
    kinds = {"default": asdict(settings), "unguided": asdict(settings.unguided())}
    with publishing(paths.SAMPLES, "samples", pipeline.parents) as folder:
        began = time.monotonic()
        for kind, settings in kinds.items():
            write_samples(folder / kind, pipeline, section.images, settings | common)
        seconds = time.monotonic() - began
        write_grid(folder / "default", pipeline.num_classes, section.grid_columns, folder / "grid.png")
    images = len(kinds) * section.images
    print(f"{paths.SAMPLES}: {images} images in {seconds:.1f} s, {images / seconds:.0f} images a second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--complete", type=Path, metavar="IMAGE", help="complete this image instead")
    parser.add_argument("--mask", type=Path, help="an image of the same size: white where pixels are known")
    parser.add_argument("--class", type=int, dest="label", help="of the image (default: none in particular)")
    parser.add_argument("--count", type=int, help="of completions (default: 8)")
    parser.add_argument("--output", type=Path, help="default: completed.png")


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    raise SystemExit(main())
