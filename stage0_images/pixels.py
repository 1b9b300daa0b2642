"""Turns an image of any format, mode and size into a uint8 array (C, H, W) as the parameters ask for."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from stage0_images.parameters import Preparation
from stage0_images.reading import DECODING, BadImage, Header, SourceFile, encoded

# The formats that are read. Pillow decodes them itself. For EPS it would run Ghostscript on the file, so EPS is left
# out.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A very long image is cut to this many times the wanted length before it is resized. The crop that follows removes the
# ends anyway, and resizing the whole image would take much memory.
STRIP = 4
# The most that a pixel takes while an image is converted, in bytes (measured), and in a file that is not compressed.
PIXEL_BYTES, FILE_BYTES, METADATA_BYTES = 24, 8, 2**24
FAINT = 16  # of 255; an image that differs less from its background is not seen
GREY_PIXELS = 2**20  # pixels of a deep grey image that are scaled at a time
# Numbers of TIFF tags.
BITS_PER_SAMPLE, SAMPLE_FORMAT, MOST_VALUES = 258, 339, (281, 341)


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


def is_image(file: SourceFile) -> bool:
    """Whether a file begins as an image in one of the formats does, whatever its name ends in.

    PPM is left out, since texts may begin like it. A file is no image if Pillow needs more than `HEADER_BYTES` of it to
    tell.
    """
    formats = [name for name in readable_formats() if name != "PPM"]
    with decoding():
        try:
            with file.opened() as stream, Image.open(Header(stream), formats=formats):
                return True
        except Exception:  # Pillow raises many kinds of errors on damaged bytes
            return False


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an encoded image and hold the memory that its pixels may take until the context ends.

    Nothing is decoded yet. Call it within `decoding()`.

    Raises:
        BadImage: the image has more than `max_pixels` pixels.
        Exception: Pillow's, of many kinds.
    """
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:  # the size comes from the header
            raise BadImage(f"{width}x{height} pixels, over data.max_pixels ({max_pixels})")
        with DECODING.holding(width * height * PIXEL_BYTES):
            yield image


def largest_file(max_pixels: int) -> int:
    """The largest image file that is read, in bytes: one that is not compressed, with room for metadata."""
    return max_pixels * FILE_BYTES + METADATA_BYTES


def read_image(content: bytes | Path | SourceFile | np.ndarray | None, params: Preparation) -> np.ndarray:
    """Decodes an image, turns it upright, lays it over the background, converts its colours, and fits its size.

    Of an animation or a file of several pages, the first frame is taken. Call it within `decoding()`.

    Args:
        content: an encoded image, the path of a file, a file of a source, uint8 pixels (H, W), or None for a missing
            image.
        params: how images are prepared.

    Returns:
        uint8 (channels, height, width).

    Raises:
        BadImage: the image is missing, empty, unreadable, damaged or truncated, its pixels have an unknown scale or are
            not finite, it has more than `max_pixels` pixels, or its file is too large for so many.
    """
    if isinstance(content, np.ndarray):
        image = _fit(_in_channels(Image.fromarray(content), params), params)
    else:
        with encoded(content, largest_file(params.max_pixels)) as data:
            image = _decode(data, params)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def background_pixel(params: Preparation) -> np.ndarray:
    """The background's colour as it is in a prepared image, uint8 (channels, 1, 1)."""
    image = Image.new("RGB", (1, 1), tuple(params.background)).convert("L" if params.channels == 1 else "RGB")
    return np.asarray(image).reshape(params.channels, 1, 1)


def largest_grey(content: bytes | SourceFile | np.ndarray | None, max_pixels: int) -> int | None:
    """The largest value of a grey image of more than 8 bits, else None. Call it within `decoding()`."""
    try:
        with encoded(content, largest_file(max_pixels)) as data, opened(data, max_pixels) as image:
            deep = image.mode == "I" or image.mode.startswith("I;16")
            return int(np.asarray(image).max()) if deep else None
    except Exception:  # Pillow raises many kinds of errors; `read_image` tells why an image cannot be used
        return None


def readable_formats() -> tuple[str, ...]:
    """The names in `FORMATS` that this build of Pillow can open. MPO is not one of them: Pillow opens it as JPEG."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, params: Preparation) -> Image.Image:
    """Decodes an image, turns it upright, converts it to grey or RGB, and fits its size. Raises BadImage."""
    try:
        with opened(data, params.max_pixels) as image:
            if image.format == "PNG":
                # Decoding ignores wrong checksums, so that a changed byte would give wrong pixels. `verify` does not.
                with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
                    copy.verify()
            ImageOps.exif_transpose(image, in_place=True)
            return _fit(_in_channels(image, params), params)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(_unread_tiff(data) or "not an image in a known format, or its header is damaged") from error
    except Exception as error:  # Pillow raises many kinds of errors on damaged bytes, and one file must not end the run
        text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "...", " ".join(str(error).split()))
        raise BadImage(f"cannot be decoded: {text or type(error).__name__}") from error


def _unread_tiff(data: bytes) -> str | None:
    """What a TIFF file holds that Pillow cannot read. None: the file is no TIFF, or its header is damaged."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    try:
        tags, stream = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bits, kind = tags[BITS_PER_SAMPLE][0], tags.get(SAMPLE_FORMAT, (1,))[0]
    except Exception:
        return None
    numbers = {1: "unsigned whole numbers", 2: "whole numbers with a sign", 3: "floating-point numbers"}
    return (
        f"a TIFF file of {bits}-bit {numbers.get(kind, 'numbers of another kind')}, which Pillow does not read; save "
        "it with 8 or 16 bits"
    )


def _grey_range(image: Image.Image, values: np.ndarray, params: Preparation) -> tuple[float, float]:
    """The values of a grey image that become black and white.

    They are `grey_range` of the parameters if it is given. Otherwise black is 0, and white is the largest value of as
    many bits as a TIFF file says that it uses, or else of 16 bits. The tag MaxSampleValue counts only if it is the
    largest value of some number of bits, such as 4095: otherwise it is the image's own brightest pixel.

    Raises:
        BadImage: a value is not in 0 to 65535, and the parameters do not say what it means.
    """
    if params.grey_range is not None:
        return params.grey_range
    if image.mode == "F":
        raise BadImage("floating-point pixels: their scale is unknown; data.grey_range sets it")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise BadImage(f"32-bit pixels from {low} to {high}: their scale is unknown; data.grey_range sets it")
    tags = getattr(image, "tag_v2", {})
    said = [2 ** min(bits, 16) - 1 for bits in _numbers(tags, BITS_PER_SAMPLE)]
    said += [n for tag in MOST_VALUES for n in _numbers(tags, tag) if n > 0 and n & (n + 1) == 0]
    return 0, min([n for n in said if n >= high], default=65535)


def _numbers(tags: Mapping[int, Any], tag: int) -> list[int]:
    """The whole numbers of a TIFF tag; none if it is missing."""
    found = tags.get(tag, ())
    return [int(n) for n in (found if isinstance(found, tuple) else (found,)) if n == int(n)]


def _to_eight_bits(image: Image.Image, params: Preparation) -> Image.Image:
    """Converts a grey image of more than 8 bits to 8 bits, see `_grey_range`. Raises BadImage."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise BadImage("pixels that are NaN or infinite")
    black, white = _grey_range(image, values, params)
    eight = np.empty(values.shape, np.uint8)
    rows = max(1, GREY_PIXELS // max(1, values.shape[1]))
    for start in range(0, len(values), rows):  # a whole image as float64 would take four times its own memory
        part = slice(start, start + rows)
        scaled = (values[part].astype(np.float64) - black) * (255 / (white - black))
        eight[part] = np.rint(scaled.clip(0, 255))
    grey = Image.fromarray(eight)
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _in_channels(image: Image.Image, params: Preparation) -> Image.Image:
    """Converts an image of any mode to grey or RGB, laid over the background where it is transparent.

    Raises:
        BadImage: the pixels have an unknown scale, or are not finite.
    """
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image, params)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*params.background, 255)), image).convert("RGB")
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")  # grey is then computed from RGB for every mode
    return image.convert("L" if params.channels == 1 else "RGB")


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image resized to exactly these sides in pixels, by bicubic interpolation with antialiasing."""
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
