"""Pictures of sampled images and of completions, as the commands and the demo make them; single images for Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from sampling.captions import beside, drawable
from sampling.labels import Classes
from tessera.errors import UserError, printable
from tessera.images.grids import GREY, PADDING, enlargement, image_grid
from tessera.images.pixels import to_float, to_uint8

if TYPE_CHECKING:
    from sampling.pipeline import TwoStagePipeline

GRID_CLASSES = 50  # of more classes, a picture shows the first 50, unless they are named
MOST_PIXELS = 10**8  # of a picture; programs refuse to open, or take long for, what is larger


def to_pil(pixels: torch.Tensor) -> list[Image.Image]:
    """Images uint8 (B, C, H, W) as grey or RGB images of Pillow, a list of B."""
    return [Image.fromarray(image) for image in pixels.cpu().permute(0, 2, 3, 1).squeeze(-1).numpy()]


def classes_in_rows(pixels: torch.Tensor, numbers: list[int], columns: int, classes: Classes) -> torch.Tensor:
    """A picture in which each class has one or several rows, with its name on the left.

    Args:
        pixels: uint8 (n, C, H, W), the images of each class, one class after the other; equally many of each.
        numbers: of the classes, in this order.
        columns: images a row.
        classes: all classes, which have the names.

    Returns:
        uint8 (3, height, width).
    """
    each = len(pixels) // len(numbers)
    rows = -(-each // columns)
    blank = torch.full_like(pixels[:1], GREY).expand(rows * columns - each, -1, -1, -1)
    padded = torch.cat([part for images in pixels.split(each) for part in (images, blank)])
    names = [name for number in numbers for name in (_name(classes, number), *[None] * (rows - 1))]
    return beside(image_grid(padded, columns), names, pixels.shape[2] * enlargement(pixels.shape))


def arranged(pixels: torch.Tensor, shown: list[int], columns: int, classes: Classes) -> torch.Tensor:
    """One picture of many images. Each class begins a new row, which carries the class's name.

    If all images are of one class, or have none, the picture is as nearly square as possible.

    Args:
        pixels: uint8 (n, C, H, W). With classes [a, b, c] in `shown`, the images' classes are a, b, c, a, b, c, ...
        shown: the indices of these classes; empty if images have no classes.
        columns: the largest number of images in a row, if there are several classes.
        classes: the names of all classes.

    Returns:
        uint8 (3, height, width).
    """
    if not shown:
        return image_grid(pixels, square(len(pixels)))
    each = len(pixels) // len(shown)
    columns = square(each) if len(shown) == 1 else -(-each // -(-each // columns))  # full rows, as far as possible
    ordered = torch.cat([pixels[place :: len(shown)] for place in range(len(shown))])
    return classes_in_rows(ordered, shown, columns, classes)


def legend(shown: Sequence[int], classes: Classes) -> str:
    """Which names stand behind the numbers that a picture shows where its font lacks letters; "" if there are none.

    Args:
        shown: the indices of the classes in the picture.
    """
    named = [(number, _name(classes, number), classes.name(number)) for number in shown]
    replaced = [(drawn, name) for number, drawn, name in named if drawn != name and drawn.split()[0] == f"#{number}"]
    return "; ".join(f"{drawn} is {printable(name)}" for drawn, name in replaced)


def completions(
    pipeline: TwoStagePipeline,
    image: torch.Tensor,
    known: torch.Tensor,
    count: int,
    label: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """The image with grey for what is unknown, and `count` completions of it: uint8 (count + 1, C, H, W).

    Args:
        image: uint8 (C, H, W); known: bool (H, W).
        label: the image's class, or None for no class in particular.
        settings: of `TwoStagePipeline.complete`.
    """
    labels = None if label is None else [label] * count
    images = to_float(image)[None].expand(count, -1, -1, -1)
    completed = pipeline.complete(images, known.expand(count, 1, -1, -1), labels, **settings)
    return torch.cat([image.masked_fill(~known, GREY)[None], to_uint8(completed)])


def square(count: int) -> int:
    """The number of columns of the smallest square that holds `count` images."""
    return math.isqrt(count - 1) + 1


def require_size(option: str, images: int, image_shape: tuple[int, int, int]) -> None:
    """Refuses a picture that is too large to look at.

    Args:
        option: the option that asks for the images, for the message.
        images: number of images in the picture, each of shape (C, H, W).

    Raises:
        UserError: the picture, enlarged and with gaps between the images, would have more than `MOST_PIXELS` pixels.
    """
    _, height, width = image_shape
    factor = enlargement(image_shape)
    size = images * (height * factor + PADDING) * (width * factor + PADDING)
    if size > MOST_PIXELS:
        most = images * MOST_PIXELS // size
        raise UserError(f"{option}: a picture has room for {most} images of this size, not for {images}; ask for fewer")


def file_name(place: int, name: str | None) -> str:
    """The name of a single image's file, such as "00012-ankle_boot.png".

    Args:
        place: the image's number in its run, from 0.
        name: the name of its class; None without classes. A character that file systems may refuse becomes "_".
    """
    safe = "".join(c if c.isalnum() else "_" for c in name or "")[:40]
    return f"{place:05d}-{safe}.png" if safe else f"{place:05d}.png"


def _name(classes: Classes, number: int) -> str:
    named = classes.names is not None and number < classes.count
    return drawable(classes.name(number), number) if named else classes.name(number)
