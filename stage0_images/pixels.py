"""Turns an image of any format, mode and size into a uint8 array (C, H, W) as the parameters ask for."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from stage0_images.parameters import Preparation

# The formats that are read. Pillow decodes them itself. For EPS it would run Ghostscript on the file, so EPS is left
# out.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A very long image is cut to this many times the wanted length before it is resized. The crop that follows removes the
# ends anyway, and resizing the whole image would take much memory.
STRIP = 4


class BadImage(ValueError):
    """An image cannot be used. The message is the reason, in one line that names nothing of this machine."""


def image_suffixes() -> frozenset[str]:
    """The file name endings of the formats that are read, in lower case, with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


@contextmanager
def decoding() -> Iterator[None]:
    """Switches off Pillow's limit on pixels and its warnings in all threads, and restores both at the end.

    `data.max_pixels` is the limit instead. Pillow warns about odd metadata, which does not harm the pixels.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_image(content: bytes | Path | np.ndarray | None, params: Preparation) -> np.ndarray:
    """Decodes an image, turns it upright, lays it over the background, converts its colours, and fits its size.

    Of an animation or a file of several pages, the first frame is taken. Call it within `decoding()`.

    Args:
        content: an encoded image, the path of a file, uint8 pixels (H, W), or None for a missing image.
        params: how images are prepared.

    Returns:
        uint8 (channels, height, width).

    Raises:
        BadImage: the image is missing, empty, unreadable, damaged or truncated, its pixels have an unknown scale, or it
            has more than `max_pixels` pixels.
    """
    if isinstance(content, np.ndarray):
        image = _in_channels(Image.fromarray(content), params)
    else:
        image = _decode(_bytes(content), params)
    pixels = np.asarray(_fit(image, params))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _bytes(content: bytes | Path | None) -> bytes:
    """The bytes of an encoded image. Raises BadImage if there are none."""
    if isinstance(content, Path):
        try:
            content = content.read_bytes()
        except OSError as error:
            raise BadImage(f"unreadable file: {error.strerror}") from error
    if content is None:
        raise BadImage("no image (null)")
    if not content:
        raise BadImage("empty file (0 bytes)")
    return content


def _formats() -> tuple[str, ...]:
    """The names in `FORMATS` that this build of Pillow can open. MPO is not one of them: Pillow opens it as JPEG."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, params: Preparation) -> Image.Image:
    """Decodes an image, turns it upright, and converts it to grey or RGB. Raises BadImage."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > params.max_pixels:  # the size comes from the header; nothing is decoded yet
                raise BadImage(f"{width}x{height} pixels, over data.max_pixels ({params.max_pixels})")
            if image.format == "PNG":
                # Decoding ignores wrong checksums, so that a changed byte would give wrong pixels. `verify` does not.
                with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
                    copy.verify()
            ImageOps.exif_transpose(image, in_place=True)
            return _in_channels(image, params)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image in a known format, or its header is damaged") from error
    except Exception as error:  # Pillow raises many kinds of errors on damaged bytes, and one file must not end the run
        text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "...", " ".join(str(error).split()))
        raise BadImage(f"cannot be decoded: {text or type(error).__name__}") from error


def _sixteen_bit(image: Image.Image) -> Image.Image:
    """Converts a grey image of 16-bit values, stored in 16 or 32 bits, to 8 bits. The value 65535 becomes 255.

    Raises:
        BadImage: a value is not in 0 to 65535.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(
            f"32-bit pixels from {values.min()} to {values.max()}: their scale is unknown (16 bits are read)"
        )
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _in_channels(image: Image.Image, params: Preparation) -> Image.Image:
    """Converts an image of any mode to grey or RGB, laid over the background where it is transparent.

    Raises:
        BadImage: the pixels have an unknown scale.
    """
    if image.mode == "F":
        raise BadImage("floating-point pixels: their scale is unknown")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _sixteen_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*params.background, 255)), image).convert("RGB")
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")  # grey is then computed from RGB for every mode
    return image.convert("L" if params.channels == 1 else "RGB")


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes by bicubic interpolation with antialiasing."""
    if image.size == (width, height):
        return image
    return transforms.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _fit(image: Image.Image, params: Preparation) -> Image.Image:
    """Brings an image to the wanted height and width.

    "stretch" resizes each side. "crop" resizes to the smallest size that covers the wanted one and has the image's own
    aspect ratio, and then cuts out the centre.
    """
    if image.size == (params.width, params.height):
        return image
    if params.fit == "stretch":
        return _resize(image, params.height, params.width)
    width, height = image.size
    scale = max(params.height / height, params.width / width)
    longest = (math.ceil(STRIP * params.height / scale), math.ceil(STRIP * params.width / scale))
    if height > longest[0] or width > longest[1]:
        height, width = min(height, longest[0]), min(width, longest[1])
        image = transforms.center_crop(image, [height, width])
    covering = max(params.height, round(height * scale)), max(params.width, round(width * scale))
    return transforms.center_crop(_resize(image, *covering), [params.height, params.width])
