"""Complete an image: keep its known pixels and sample the rest.

    python -m sampling.complete IMAGE --mask MASK [--class sneaker] [--count 8] [--output completed.png]

MASK is an image of the same size, white where pixels are known. Reads models/vqvae and models/prior, and writes one
picture: the image with grey for what is unknown, and then the completions.

A code is given where all the pixels that it stands for are known; the others are sampled. Values that no option gives
are those of `sampling` in params.yaml. On which given codes a sampled one depends is up to the prior
(docs/guide/sampling.md#completing-an-image): masked and any_order see all of them, others those before it only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampling import options
from tessera import entry
from tessera.errors import UserError
from tessera.parameters import Params

if TYPE_CHECKING:
    import torch

WHITE = 250  # of 255: what counts as white in a mask, since a JPEG's white is not exact


def read_given(image: Path, mask: Path, preparation: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, uint8 (C, H, W), and which of its pixels are known, bool (H, W): those where the mask is white.

    Both become the model's size in the way in which `prepare` made the training images. A transparent mask is black.

    Args:
        preparation: how the model's images were prepared, from its own configuration.

    Raises:
        UserError: a file cannot be read, the two have different sizes, or no pixel is known.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    from stage0_images.parameters import Preparation
    from stage0_images.pixels import decoding, largest_file, opened, read_image
    from stage0_images.reading import BadImage, encoded

    if not preparation:
        raise UserError("models/vqvae does not say how its images were prepared; make it anew with `dvc repro`")
    as_image = Preparation.of_model(preparation)
    as_mask = as_image.model_copy(update={"channels": 1, "background": (0, 0, 0), "grey_range": None})
    found, sizes = [], []
    for path, wanted in ((image, as_image), (mask, as_mask)):
        try:
            with decoding():
                found.append(np.array(read_image(path, wanted)))
                with encoded(path, largest_file(wanted.max_pixels)) as data, opened(data, wanted.max_pixels) as whole:
                    sizes.append(ImageOps.exif_transpose(whole).size)
        except BadImage as error:
            raise UserError(f"{path}: {error}") from error
    if sizes[0] != sizes[1]:  # each would be cut and scaled in its own way, and they would not cover each other
        one, other = ("x".join(map(str, size)) for size in sizes)
        raise UserError(f"{mask}: {other} pixels, but {image} has {one}; make a mask of the image's own size")
    brightest = int(found[1].max())
    if brightest < WHITE:
        advice = "multiply its values by 255" if brightest == 1 else "make it white there; or is it inverted?"
        raise UserError(
            f"{mask}: no pixel is white ({WHITE} of 255 or more), so no pixel of the image is known: the brightest is "
            f"{brightest}; {advice}"
        )
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])[0] >= WHITE


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Load the models, read the image, complete it and write the picture."""
    options.whole(arguments, "count")
    options.picture_path(arguments.output)
    section = options.section_with(arguments, params.sampling)
    pipeline = options.load(arguments, section, params.runtime.threads)
    from dataclasses import asdict

    from sampling.pictures import completions, require_size
    from tessera.images.grids import image_grid, save_grid

    settings = options.settings_of(section, pipeline)
    label = None if arguments.label is None else options.class_of(arguments.label, pipeline.classes)
    require_size("--count", arguments.count + 1, pipeline.layout.image_shape)
    image, known = read_given(arguments.image, arguments.mask, pipeline.vqvae.config["preparation"])
    whole = asdict(settings) | {"seed": section.seed, "batch_size": section.batch_size}
    pictures = completions(pipeline, image, known, arguments.count, label, whole)
    save_grid(image_grid(pictures, min(section.grid_columns, len(pictures))), arguments.output)
    unlabelled = pipeline.num_classes and label in (None, pipeline.num_classes)
    guided = " without guidance, as there is no class" if unlabelled and section.guidance_scale != 1 else ""
    print(f"{arguments.output}: {known.float().mean():.0%} of the pixels given, {arguments.count} completions{guided}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the image to complete")
    parser.add_argument("--mask", type=Path, required=True, help="an image of the same size: white where it is known")
    parser.add_argument(
        "--class",
        dest="label",
        metavar="CLASS",
        help="of the image, by its name, or by its number if none has that name (default: none in particular)",
    )
    parser.add_argument("--count", type=int, default=8, help="of completions (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("completed.png"), help=".png (default: %(default)s)")
    options.add_models(parser)
    options.add_values(parser.add_argument_group("values in place of those in params.yaml"))


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, add_arguments)


if __name__ == "__main__":
    raise SystemExit(main())
