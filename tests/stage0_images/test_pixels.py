"""Every image becomes the same array: its colours, its range of grey, its orientation and its size."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from encoded_images import COLOURS, RNG, chw, encode
from PIL import Image

GREYS = COLOURS[..., 0]


def luma(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601, as Pillow's documentation states it for mode L."""
    return pixels.astype(np.float64) @ [0.299, 0.587, 0.114]


def over(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + np.array(background) * (1 - share)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_kept_exactly_in_lossless_formats(read, name):
    pixels = read(encode(COLOURS, name))
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, chw(COLOURS))


@pytest.mark.parametrize("name", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_read(read, name):
    flat = np.full((6, 8, 3), (200, 40, 90), np.uint8)
    assert np.abs(read(encode(flat, name)).astype(int) - chw(flat)).max() <= 8


def test_colour_becomes_grey_by_luma_and_grey_becomes_equal_channels(read):
    assert np.abs(read(encode(COLOURS), channels=1)[0] - luma(COLOURS)).max() <= 1
    assert np.array_equal(read(encode(GREYS)), np.stack([GREYS] * 3))
    assert np.array_equal(read(encode(GREYS), channels=1), GREYS[None])


def test_arrays_of_pixels_are_taken_as_grey(read):
    assert np.array_equal(read(GREYS, channels=1), GREYS[None])
    assert read(GREYS, height=12, width=16).shape == (3, 12, 16)


def test_one_bit_images_are_black_and_white(read):
    assert np.array_equal(read(encode(Image.fromarray(GREYS > 127)), channels=1)[0], np.where(GREYS > 127, 255, 0))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 60)])
def test_transparency_shows_the_background(read, background):
    alpha = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
    rgba = read(encode(np.dstack([COLOURS, alpha])), background=background)
    assert np.abs(rgba - chw(over(COLOURS, alpha, background))).max() <= 1
    la = encode(Image.merge("LA", (Image.fromarray(GREYS), Image.fromarray(alpha))))
    expected = over(np.stack([GREYS] * 3, -1), alpha, background)
    assert np.abs(read(la, background=background) - chw(expected)).max() <= 1
    assert np.abs(read(la, background=background, channels=1)[0] - luma(expected)).max() <= 2


def test_palettes_are_looked_up_and_their_transparency_shows_the_background(read):
    indices = RNG.integers(0, 4, (6, 8), dtype=np.uint8)
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image = Image.frombytes("P", (8, 6), indices.tobytes())
    image.putpalette(palette.tobytes())
    assert np.array_equal(read(encode(image)), chw(palette[indices]))
    one = palette[indices].copy()
    one[indices == 2] = (1, 2, 3)
    assert np.array_equal(read(encode(image, transparency=2), background=(1, 2, 3)), chw(one))
    each = over(palette[indices], np.array([255, 0, 128, 255])[indices], (1, 2, 3))
    partly = read(encode(image, transparency=bytes([255, 0, 128, 255])), background=(1, 2, 3))
    assert np.abs(partly - chw(each)).max() <= 1
    assert np.array_equal(read(encode(image, "GIF", transparency=2), background=(1, 2, 3)), chw(one))


def test_a_transparent_colour_of_rgb_and_of_grey_shows_the_background(read):
    pixels = COLOURS.copy()
    pixels[0, 0] = (5, 6, 7)
    expected = pixels.copy()
    expected[0, 0] = (1, 2, 3)
    assert np.array_equal(read(encode(pixels, transparency=(5, 6, 7)), background=(1, 2, 3)), chw(expected))
    grey = np.full((6, 8), 50, np.uint8)
    grey[2, 3] = 9
    assert read(encode(grey, transparency=9), background=(1, 2, 3))[:, 2, 3].tolist() == [1, 2, 3]


def test_cmyk_is_converted(read):
    ink = np.zeros((6, 8, 4), np.uint8)
    ink[..., 0] = 255  # cyan alone: no red
    image = Image.frombytes("CMYK", (8, 6), ink.tobytes())
    pixels, jpeg = read(encode(image, "TIFF")), read(encode(image, "JPEG"))
    assert pixels[0].max() == 0 and pixels[1:].min() == 255
    assert jpeg[0].max() <= 8 and jpeg[1:].min() >= 247


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(read, name):
    values = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)
    pixels = read(encode(values, name), channels=1)[0]
    assert np.array_equal(pixels, np.rint(values / 65535 * 255))


def test_sixteen_bits_of_big_endian_and_of_mode_i_are_scaled(read):
    values = np.linspace(0, 65535, 48).round().astype(np.int32).reshape(6, 8)
    expected = np.rint(values / 65535 * 255)
    assert np.array_equal(read(encode(values, "TIFF"), channels=1)[0], expected)
    big = Image.frombytes("I;16B", (8, 6), values.astype(">u2").tobytes())
    assert np.array_equal(read(encode(big, "TIFF"), channels=1)[0], expected)


def test_a_transparent_value_of_sixteen_bits_shows_the_background(read):
    values = np.full((6, 8), 40000, np.uint16)
    values[0, 0] = 300
    data = encode(values)
    chunk = b"tRNS" + struct.pack(">H", 300)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end_of_header = 8 + 25
    pixels = read(data[:end_of_header] + chunk + data[end_of_header:], background=(1, 2, 3))
    assert pixels[:, 0, 0].tolist() == [1, 2, 3] and pixels[:, 1, 1].tolist() == [156, 156, 156]


def test_grey_range_says_which_values_are_black_and_white(read):
    values = np.linspace(0, 4095, 48).round().reshape(6, 8)
    expected = np.rint(values / 4095 * 255)
    for kind in (np.uint16, np.int32, np.float32):
        pixels = read(encode(values.astype(kind), "TIFF"), channels=1, grey_range=(0, 4095))[0]
        assert np.array_equal(pixels, expected), kind
    signed = encode((values - 1000).astype(np.int32), "TIFF")
    assert np.array_equal(read(signed, channels=1, grey_range=(-1000, 3095))[0], expected)
    clipped = read(encode(np.array([[0, 10, 20, 30]], np.uint16)), height=1, width=4, channels=1, grey_range=(10, 20))
    assert clipped.tolist() == [[[0, 0, 255, 255]]]
    assert np.array_equal(read(encode(GREYS), channels=1, grey_range=(0, 4095))[0], GREYS), "8 bits have their range"


def test_the_range_of_grey_is_told_by_a_tiff_files_tags(read):
    values = np.linspace(0, 4095, 48).round().astype(np.uint16).reshape(6, 8)
    expected = np.rint(values / 4095 * 255)

    def pixels(tags: dict[int, int]) -> np.ndarray:
        return read(encode(values, "TIFF", tiffinfo=tags), channels=1)[0]

    assert np.array_equal(pixels({281: 4095}), expected), "MaxSampleValue ends 12 bits"
    whole = np.rint(values / 65535 * 255)
    assert np.array_equal(pixels({}), whole)
    assert np.array_equal(pixels({281: 5000}), whole), "the brightest pixel of one image is no scale"
    assert np.array_equal(pixels({281: 1023}), whole), "nor is what a pixel exceeds"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(read, name):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :12] = 255  # top left as stored; 6: turn clockwise, so top right as seen
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read(encode(stored, name, exif=exif), height=24, width=16)
    corners = (pixels[0] > 127)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [False, True, False, False]


def test_an_animation_gives_its_first_frame(read):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_crop_keeps_the_centre_and_the_aspect(read):
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, 30:90] = 255  # the centre; the filter reaches a little beyond it
    pixels = read(encode(image), height=20, width=20)
    assert pixels.min() > 220 and pixels[:, :, 1:-1].min() == 255
    image[:, 30:33] = 0  # one pixel's worth at its left
    assert read(encode(image), height=20, width=20)[:, :, 0].max() < 30
    tall = np.zeros((120, 60, 3), np.uint8)
    tall[42:78] = 255  # 60x36 for 10x6
    assert read(encode(tall), height=6, width=10).min() > 220


def test_stretch_keeps_everything(read):
    image = np.zeros((60, 120, 3), np.uint8)
    image[:, 60:] = 255
    pixels = read(encode(image), height=20, width=20, fit="stretch")
    assert pixels[:, :, :9].max() == 0 and pixels[:, :, 11:].min() == 255


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(7, 5), (5, 7), (33, 90), (1, 1), (90, 2)])
def test_any_size_fits_any_rectangle(read, fit, size):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert read(encode(pixels), height=9, width=14, fit=fit, channels=1).shape == (1, 9, 14)


def test_shrinking_is_antialiased(read):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    pixels = read(encode(stripes), height=8, width=8, channels=1)
    assert np.abs(pixels.astype(int) - 127).max() <= 5


def test_cropping_alone_does_not_resample(read):
    pixels = RNG.integers(0, 256, (6, 12, 3), dtype=np.uint8)
    assert np.array_equal(read(encode(pixels)), chw(pixels[:, 2:10]))


def test_a_strip_is_cut_before_it_grows(read):
    strip = np.full((1, 60000), 77, np.uint8)  # resized whole it would have 230 million pixels
    assert (read(encode(strip), height=64, width=64) == 77).all()
