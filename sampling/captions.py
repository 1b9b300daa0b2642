"""Names of classes beside the rows of a picture, in the font that Pillow carries."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tessera.images.grids import PADDING

PAPER, INK = 255, 0  # the margin and its letters
SIZES = (14, 40)  # smallest and largest height of the letters, pixels
WIDEST = 12  # times the letters' height: longer names are cut


def beside(picture: torch.Tensor, names: Sequence[str | None], cell: int) -> torch.Tensor:
    """A picture of images in rows, with a margin on the left that names the rows.

    Args:
        picture: uint8 (3, height, width), from `tessera.images.grids.image_grid`.
        names: of each row from the top; None for a row without a name.
        cell: height of an image in the picture, pixels.

    Returns:
        uint8 (3, height, width + margin).
    """
    font = ImageFont.load_default(min(max(cell // 4, SIZES[0]), SIZES[1], max(cell, 8)))
    shown = [name and _cut(name, font) for name in names]
    gap = int(font.size) // 2
    margin = max(int(font.getlength(text)) + 1 for text in shown if text) + 2 * gap
    strip = Image.new("L", (margin, picture.shape[1]), PAPER)
    draw = ImageDraw.Draw(strip)
    for row, text in enumerate(shown):
        if text:
            middle = PADDING + row * (cell + PADDING) + cell / 2
            draw.text((margin - gap, middle), text, fill=INK, font=font, anchor="rm")
    return torch.cat([torch.from_numpy(np.array(strip)).expand(3, -1, -1), picture], dim=2)


def drawable(name: str, number: int) -> str:
    """A class's name as the font can draw it, which has little more than English letters.

    An accented letter loses its accent. Where other characters are lost, the class's number comes first, so that two
    classes cannot look the same: "#3 cat" for a cat's face and "cat".
    """
    font = ImageFont.load_default(SIZES[0])
    letters = [c if _has(font, c) else unicodedata.normalize("NFKD", c)[0] for c in unicodedata.normalize("NFC", name)]
    kept = "".join(c for c in letters if _has(font, c)).strip()
    lost = not kept or not all(_has(font, c) for c in letters)
    return f"#{number} {kept}".strip() if lost else kept


@cache
def _missing() -> bytes:
    """How the font draws a character that it does not have."""
    return bytes(ImageFont.load_default(SIZES[0]).getmask("\U0010ffff"))


def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return character.isprintable() and bytes(font.getmask(character)) != _missing()


def _cut(name: str, font: ImageFont.FreeTypeFont) -> str:
    """A name that is no wider than `WIDEST`; what is cut is shown by dots."""
    most = WIDEST * font.size
    if font.getlength(name) <= most:
        return name
    while name and font.getlength(f"{name}...") > most:
        name = name[:-1]
    return f"{name.rstrip()}..."
