"""Looks at a source of images without preparing it: how many, how large, grey or coloured, with which labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stage0_images.columns import Source, SourceImage
from stage0_images.dividing import divide
from stage0_images.parameters import DataParams
from stage0_images.pixels import FAINT, decoding, largest_file, opened
from stage0_images.reading import encoded
from tessera.errors import UserError

SAMPLE = 200  # images that are opened
SHOWN = 64  # pixels a side, at which an image's colours are looked at
COLOUR = 8  # of 255; channels that differ by less are one grey
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}  # for transparent images
VANISHED = 0.02  # another background than white is better if so many fewer images vanish on it, as a share


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        images: number of images in each split, after missing splits are cut from the training images.
        given: the splits that the source itself has.
        classes: names of the classes, or None without labels.
        sides: the shorter sides of the images that were opened, in pixels, ascending.
        aspects: width over height of these images, ascending.
        grey: whether all of them are grey.
        transparent: the share of them with transparent pixels.
        vanish: the share of them that would vanish on each of `BACKGROUNDS`, as a white drawing does on white.
        refused: the share of images that could not be opened.
    """

    images: dict[str, int]
    given: tuple[str, ...]
    classes: tuple[str, ...] | None
    sides: tuple[int, ...]
    aspects: tuple[float, ...]
    grey: bool
    transparent: float
    vanish: dict[str, float]
    refused: float

    @property
    def background(self) -> str:
        """The one of `BACKGROUNDS` to lay transparent images over: white unless another is better by `VANISHED`."""
        best = min(self.vanish, key=self.vanish.__getitem__)
        return best if self.vanish["white"] - self.vanish[best] > VANISHED else "white"

    @property
    def side(self) -> int:
        """The shorter side that nine of ten images have at least, in pixels."""
        return self.sides[len(self.sides) // 10]


def look(source: Source, params: DataParams) -> Survey:
    """Open some training images, evenly spread over the source, and say what they are like.

    Raises:
        UserError: see `divide`; or none of the images can be opened.
    """
    parts = divide(source, params)
    train = parts["train"]
    rows = train.rows[np.linspace(0, len(train.rows) - 1, min(SAMPLE, len(train.rows))).astype(int)]
    with decoding():
        seen = [found for image in train.split.images(rows) for found in _seen(image, params.max_pixels)]
    if not seen:
        raise UserError(
            f"data.source: {params.source!r}: none of {len(rows)} images could be opened; `python -m "
            "stage0_images.prepare` tells why"
        )
    sides, aspects, coloured, transparent, vanished = zip(*seen, strict=True)
    return Survey(
        images={name: len(part.rows) for name, part in parts.items()},
        given=tuple(source.splits),
        classes=source.classes,
        sides=tuple(sorted(sides)),
        aspects=tuple(sorted(aspects)),
        grey=not any(coloured),
        transparent=sum(transparent) / len(seen),
        vanish={name: sum(name in names for names in vanished) / len(seen) for name in BACKGROUNDS},
        refused=1 - len(seen) / len(rows),
    )


def _seen(image: SourceImage, max_pixels: int) -> Iterator[tuple[int, float, bool, bool, set[str]]]:
    """An image's shorter side, its aspect, whether it is coloured and transparent, and the backgrounds it vanishes on.

    Yields nothing if the image cannot be opened.
    """
    content = image.content
    if isinstance(content, np.ndarray):
        yield min(content.shape), content.shape[1] / content.shape[0], False, False, set()
        return
    try:
        with encoded(content, largest_file(max_pixels)) as data, opened(data, max_pixels) as found:
            width, height = found.size
            found.draft("RGB", (SHOWN, SHOWN))
            small = found.convert("RGBA").resize((SHOWN, SHOWN))
    except Exception:  # Pillow raises many kinds of errors on damaged bytes; `prepare` tells why
        return
    pixels = np.asarray(small).astype(int)
    visible = pixels[pixels[..., 3] > 0][:, :3]
    coloured = bool(visible.size) and np.ptp(visible, axis=1).max() > COLOUR
    transparent = bool((pixels[..., 3] < 255).any())
    vanished = {name for name, colour in BACKGROUNDS.items() if transparent and not _shows(pixels, colour)}
    yield min(width, height), width / height, coloured, transparent, vanished


def _shows(pixels: np.ndarray, background: tuple[int, int, int]) -> bool:
    """Whether an image differs visibly from the background that it is laid over.

    Args:
        pixels: whole numbers (H, W, 4), RGBA from 0 to 255.
    """
    return bool((abs(pixels[..., :3] - background) * pixels[..., 3:]).max() >= FAINT * 255)
