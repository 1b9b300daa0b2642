"""Sample images from the published models.

    python -m sampling.sample
    python -m sampling.sample --class sneaker --count 16 --temperature 0.9 --seed 7 --output grid.png

Without options this is the stage `sample` of the pipeline. It reads models/vqvae and models/prior, and writes
results/sample (tessera/images/samples.py lists its files). default/ has images that were sampled with the parameters of
params.yaml. unguided/ has images that were sampled at temperature 1 without guidance or filters. grid.png shows the
first images of default/, a row for each class. The images are the same bytes whatever the number of processes. Sampling
that was killed goes on after the parts that it had finished.

With any further option but --params and --share, results/sample stays as it is: only the picture or the folder that the
options name is written. Values that no option gives are those of `sampling` in params.yaml. docs/guide/sampling.md has
examples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sampling import options
from tessera import entry
from tessera.artifacts.publishing import new_folder
from tessera.errors import printable
from tessera.launch.shares import add_share
from tessera.parameters import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from sampling.parameters import SamplingParams

MODULE = "sampling.sample"
USES = ("sampling",)  # the sections of params.yaml that change what this stage makes
MEMORY = "sampling.batch_size, or --batch-size"  # by which it takes less memory

OUTPUT = Path("samples.png")
TOLD = ("seed", "temperature", "top_k", "top_p", "min_p", "guidance_scale")  # settings that the last line tells
LARGEST_FACTOR = 64  # by which --enlarge repeats pixels
ASKED = ("labels", "count", "output", "images", "enlarge", "models", "revision", *options.VALUES)


def sample_as_asked(section: SamplingParams, arguments: argparse.Namespace, threads: int | None) -> None:
    """Sample what the options ask for, and write the picture and the single images that they name.

    Args:
        section: the values of params.yaml, with those that options gave.
        arguments: see `checked`.
        threads: `runtime.threads`.
    """
    each, output, factor = arguments.count or section.grid_columns, arguments.output, arguments.enlarge or 1
    pipeline = options.load(arguments, section, threads)
    from dataclasses import asdict

    import torch

    from sampling import pictures
    from tessera.images.grids import enlarged, save_grid
    from tessera.images.pixels import to_uint8

    classes = pipeline.classes
    named = [options.class_of(text, classes) for text in arguments.labels or ()]
    numbers = named or list(classes.trained)
    if not named and not arguments.images:
        numbers = numbers[: pictures.GRID_CLASSES]
    shown = numbers if named else numbers[: pictures.GRID_CLASSES]
    if output:
        channels, height, width = pipeline.layout.image_shape
        shape = (channels, factor * height, factor * width)
        pictures.require_size("--count or --enlarge", max(1, len(shown)) * each, shape)
    settings = asdict(options.settings_of(section, pipeline))
    settings |= {"seed": section.seed, "batch_size": section.batch_size}
    batches = pipeline.batches(max(1, len(numbers)) * each, numbers or None, **settings)
    pixels = (enlarged(to_uint8(images), factor) for images in batches)
    if arguments.images:
        names = [classes.name(number) for number in numbers]
        pixels = write_images(pixels, names, arguments.images, kept=max(1, len(shown)) if output else 0)
    kept = list(pixels)
    what = (
        [f" of each of {len(numbers)} classes"]
        if len(numbers) > 1
        else [f" of class {printable(classes.name(n))}" for n in numbers]
    )
    said = f"{each} images" + "".join(what)
    drawn = ", ".join(f"{name} {settings[name]}" for name in TOLD if settings[name] is not None)
    if output:
        save_grid(pictures.arranged(torch.cat(kept), shown, section.grid_columns, classes), output)
        print(f"{output}: {said}, {drawn}")
        if legend := pictures.legend(shown, classes):
            print(f"{output}: {legend}")
    if arguments.images:
        print(f"{arguments.images}: {said}, {drawn}")
    if len(shown) < len(classes.trained) and not named and output:
        print(f"{output} shows the first {len(shown)} of {len(classes.trained)} classes; name others by --class")


def write_images(batches: Iterator[torch.Tensor], names: list[str], folder: Path, kept: int) -> Iterator[torch.Tensor]:
    """Write each image as a PNG file of its own. The folder appears once it is complete.

    Args:
        batches: uint8 (B, C, H, W); the images of the classes take turns.
        names: the names of these classes; empty without classes.
        kept: the images of the first `kept` classes are also yielded.
    """
    import torch

    from sampling.pictures import file_name, to_pil
    from tessera.artifacts.publishing import scratch

    with scratch(folder) as staging:
        place = 0
        for batch in batches:
            for image in to_pil(batch):
                image.save(staging / file_name(place, names[place % len(names)] if names else None))
                place += 1
            places = torch.arange(place - len(batch), place) % max(1, len(names))
            yield batch[places < kept]
        staging.rename(folder)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """The stage, or what the options ask for. Arguments without any options are those of the stage."""
    if not asked(arguments):
        from sampling.stage import sample

        sample(params, MODULE, USES, getattr(arguments, "share", None))
        return
    section, arguments = options.section_with(arguments, params.sampling), checked(arguments)
    sample_as_asked(section, arguments, params.runtime.threads)


def asked(arguments: argparse.Namespace) -> bool:
    """Whether an option asks for other images than those of the stage `sample`. If not, the stage runs."""
    return any(getattr(arguments, name, None) is not None for name in ASKED)


def checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments, of which `output` is None only if `images` is given.

    Raises:
        UserError: the number of images is refused, or a file or folder cannot be written.
    """
    if arguments.count is not None:
        options.whole(arguments, "count")
    if arguments.enlarge is not None:
        options.whole(arguments, "enlarge", LARGEST_FACTOR)
    if arguments.images is not None:
        new_folder("--images", arguments.images)
    if arguments.output is not None:
        options.picture_path(arguments.output)
    elif arguments.images is None:
        arguments.output = OUTPUT
    return arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_share(parser)
    group = parser.add_argument_group("images of one's own; results/sample stays as it is")
    group.add_argument(
        "--class",
        dest="labels",
        action="append",
        metavar="CLASS",
        help="a class by its name, or by its number if none has that name; `none`: no class in particular; several "
        "--class are allowed (default: every class)",
    )
    group.add_argument("--count", type=int, metavar="N", help="images of each class (default: sampling.grid_columns)")
    group.add_argument("--output", type=Path, metavar="FILE", help=f"the picture, .png (default: {OUTPUT})")
    group.add_argument(
        "--images", type=Path, metavar="FOLDER", help="write each image as a PNG file of its own into a new folder"
    )
    group.add_argument(
        "--enlarge", type=int, metavar="N", help="repeat each pixel N times in both directions (default: as generated)"
    )
    options.add_models(group)
    values = parser.add_argument_group(
        "values in place of those in params.yaml; results/sample stays as it is",
        "Where codes have several levels, one value for all, or one for each, with commas: --temperature 0.9,1.0. "
        "`none` switches a filter off.",
    )
    options.add_values(values)


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
