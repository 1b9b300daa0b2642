"""Pictures of the report, each as text inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tessera.errors import UserError

if TYPE_CHECKING:
    import torch

LARGE = 200_000  # bytes of a PNG file above which a picture becomes a JPEG
WIDEST = 1280  # pixels
QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """A picture: its address (a data URI), its size in pixels, and what it shows, in words."""

    address: str
    width: int
    height: int
    words: str
    kind: str = "picture"


@dataclass(frozen=True)
class Strips:
    """Pictures with a name each, one below the other. `above`: names stand above pictures, not beside them."""

    strips: list[tuple[str, Picture]]
    above: bool = False
    kind: str = "strips"


def picture(image: Image.Image, words: str) -> Picture:
    """A picture as PNG, or as JPEG where the PNG would be large. It is made smaller if it is wider than a page."""
    if image.width > WIDEST:
        image = image.resize((WIDEST, max(1, round(image.height * WIDEST / image.width))), Image.Resampling.LANCZOS)
    data, kind = io.BytesIO(), "png"
    image.save(data, format="PNG", optimize=True)
    if data.tell() > LARGE:
        data, kind = io.BytesIO(), "jpeg"
        image.convert("RGB").save(data, format="JPEG", quality=QUALITY)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{text}", image.width, image.height, words)


def picture_of(file: Path, words: str) -> Picture | None:
    """The picture in a file, or None if there is no such file."""
    return picture_in(file.read_bytes(), words, str(file)) if file.is_file() else None


def picture_in(data: bytes, words: str, name: str) -> Picture:
    """The picture in the bytes of a PNG file.

    Args:
        name: of the file, for the message.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            return picture(image.convert("RGB"), words)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise UserError(f"{name}: a damaged picture ({type(error).__name__}); `dvc repro -f` makes it anew") from error


def grid(pixels: torch.Tensor, columns: int, words: str) -> Picture:
    """A picture of images, uint8 (n, C, H, W), in rows of `columns` images each. `words` describe it."""
    from tessera.images.grids import image_grid

    drawn = image_grid(pixels, columns).permute(1, 2, 0).contiguous().numpy()
    return picture(Image.fromarray(drawn), words)
