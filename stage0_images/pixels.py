"""One image, whatever its format, mode or size, to one checked uint8 array (C, H, W)."""

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

# Formats that Pillow decodes by itself; EPS is not among them, since it runs Ghostscript on the file.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A strip is cut to this many times the wanted length before it is resized: its ends are cropped away in any case.
STRIP = 4


class BadImage(ValueError):
    """An image that cannot be used; its message is the reason, one line without addresses or paths of this machine."""


def image_suffixes() -> frozenset[str]:
    """The file name endings, lower case with their dot, of the formats that are read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


@contextmanager
def decoding() -> Iterator[None]:
    """Hold Pillow's own pixel limit and its warnings back while images are read, in any thread; then restore both.

    `data.max_pixels` is the limit. What Pillow only warns about (odd metadata) leaves the pixels whole.
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
    """Decode, orient, flatten and fit one image; of an animation or a multi-page file, the first frame.

    Args:
        content: an encoded image, the file that holds it, or uint8 pixels (H, W). Read within `decoding()`.
        params: what the image becomes.

    Returns:
        uint8 (channels, height, width).

    Raises:
        BadImage: empty, unreadable, corrupt, truncated, of a mode without a known scale, or over `max_pixels`.
    """
    if isinstance(content, np.ndarray):
        image = _in_channels(Image.fromarray(content), params)
    else:
        image = _decode(_bytes(content), params)
    pixels = np.asarray(_fit(image, params))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _bytes(content: bytes | Path | None) -> bytes:
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
    """Those of `FORMATS` that this build of Pillow opens by themselves (MPO comes through JPEG)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, params: Preparation) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > params.max_pixels:  # from the header: nothing is decoded yet
                raise BadImage(f"{width}x{height} pixels, over data.max_pixels ({params.max_pixels})")
            if image.format == "PNG":
                # Decoding reads past checksums; a flipped byte would become other pixels.
                with Image.open(io.BytesIO(data), formats=("PNG",)) as copy:
                    copy.verify()
            ImageOps.exif_transpose(image, in_place=True)
            return _in_channels(image, params)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image in a known format, or its header is damaged") from error
    except Exception as error:  # a plug-in given damaged bytes raises anything; one file must not end the run
        text = re.sub(r"<[^>]*>|0x[0-9a-f]+", "...", " ".join(str(error).split()))
        raise BadImage(f"cannot be decoded: {text or type(error).__name__}") from error


def _sixteen_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or 32 that hold 16, to 8 bits over the whole range: 65535 becomes 255."""
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
    """Any mode to L or RGB, transparency laid over the background."""
    if image.mode == "F":
        raise BadImage("floating-point pixels: their scale is unknown")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _sixteen_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*params.background, 255)), image).convert("RGB")
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")  # so that grey comes from colours, whatever the mode
    return image.convert("L" if params.channels == 1 else "RGB")


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return transforms.resize(image, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def _fit(image: Image.Image, params: Preparation) -> Image.Image:
    """To height x width. `crop`: the smallest size that covers it with the aspect kept, then its centre."""
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
