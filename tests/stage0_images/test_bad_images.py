"""An image that is damaged, too large, of an unknown format or of an unknown scale is refused with a reason."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from encoded_images import COLOURS, RNG, chw, encode
from PIL import Image

from stage0_images.pixels import BadImage, image_suffixes


def test_a_tiff_that_pillow_does_not_read_says_its_type(read):
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = {256: 4, 257: 4, 258: 64, 259: 1, 262: 1, 273: 200, 277: 1, 278: 4, 279: 128, 339: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = header + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    data = data.ljust(200, b"\0") + np.ones((4, 4), "<f8").tobytes()
    with pytest.raises(BadImage, match="a TIFF file of 64-bit floating-point numbers"):
        read(data)
    with pytest.raises(BadImage, match="header is damaged"):
        read(data[:40])


def test_pixels_of_unknown_scale_are_refused(read):
    with pytest.raises(BadImage, match="NaN"):
        read(encode(np.full((2, 2), np.nan, np.float32), "TIFF"), grey_range=(0, 1))
    with pytest.raises(BadImage, match="32-bit pixels from -1 to 70000"):
        read(encode(np.array([[-1, 70000]], np.int32), "TIFF"))
    with pytest.raises(BadImage, match="floating-point"):
        read(encode(np.ones((2, 2), np.float32), "TIFF"))


def truncated(name: str) -> bytes:
    data = encode(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8), name)
    return data[: len(data) // 2]


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_files_are_refused(read, name):
    with pytest.raises(BadImage) as refusal:
        read(truncated(name))
    reason = str(refusal.value)
    assert reason and "\n" not in reason and "0x" not in reason


def test_a_flipped_byte_in_a_png_is_refused(read):
    data = bytearray(encode(COLOURS))
    data[-20] ^= 1
    with pytest.raises(BadImage, match="cannot be decoded"):
        read(bytes(data))


def test_what_is_no_image_is_refused_with_a_reason(read, tmp_path):
    with pytest.raises(BadImage, match="empty file"):
        read(b"")
    with pytest.raises(BadImage, match="known format"):
        read(b"hello, I am not an image at all")
    with pytest.raises(BadImage, match="null"):
        read(None)
    with pytest.raises(BadImage, match="known format"):
        read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run Ghostscript
    with pytest.raises(BadImage, match="unreadable file: No such file") as refusal:
        read(tmp_path / "gone.png")
    assert str(tmp_path) not in str(refusal.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces more than its data holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_max_pixels_is_checked_before_decoding_and_pillows_limit_is_out_of_force(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=r"60000x60000 pixels, over data\.max_pixels"):
            read(bomb(60000, 60000))
        with pytest.raises(BadImage, match=r"9x6 pixels, over data\.max_pixels"):
            read(encode(np.zeros((6, 9), np.uint8)), max_pixels=53)
        read(encode(np.zeros((6, 9), np.uint8)), max_pixels=54)
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = 10
        assert np.array_equal(read(encode(COLOURS)), chw(COLOURS))
        assert Image.MAX_IMAGE_PIXELS == 10
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def test_suffixes_are_those_of_safe_formats():
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".gif", ".bmp"} <= image_suffixes()
    assert not {".eps", ".pdf", ".txt", ".npy"} & image_suffixes()
