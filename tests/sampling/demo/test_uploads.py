"""Uploads may be anything: a picture becomes the model's size, and all else is refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sampling.demo import uploads
from sampling.demo.uploads import read_upload
from tessera.errors import UserError

PREPARATION = {"height": 8, "width": 8, "channels": 1, "fit": "crop", "background": [0, 0, 0], "max_pixels": 10**8}


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG file whose header says this size, whatever its rows hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_picture_is_cut_and_scaled_as_the_models_images_were(tmp_path):
    wide = np.zeros((16, 48), dtype=np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).convert("RGB").save(tmp_path / "wide.jpg", quality=100)
    pixels = read_upload(tmp_path / "wide.jpg", PREPARATION)
    assert pixels.shape == (1, 8, 8) and pixels.dtype == np.uint8 and (abs(pixels.astype(int) - 200) < 20).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.png", png(60000, 60000, b"\0" * 1000), "60000x60000 pixels, over the most that is read (50000000)"),
        ("long.png", png(10**8, 1, b"\0" * 1000), "100000000x1 pixels, over"),
        ("text.png", b"not a picture", "not an image in a known format"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a known format"),
        ("empty.png", b"", "empty file (0 bytes)"),
        ("cut.png", png(64, 64, b"\0" * 100), "cannot be decoded"),
    ],
    ids=["bomb", "long", "text", "svg", "empty", "cut"],
)
def test_what_is_no_picture_is_refused_in_a_line_that_names_no_folder(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_upload(tmp_path / name, PREPARATION)
    said = str(refused.value)
    assert said.startswith(f"{name}: {message}") and "\n" not in said and str(tmp_path) not in said


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png(9000, 9000, b"\0" * 9001 * 9000))  # whole: 80 kB that become 81 MB
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="9000x9000 pixels"):
        read_upload(tmp_path / "bomb.png", PREPARATION)
    assert uploads.LARGEST < 9000 * 9000 < PREPARATION["max_pixels"]


def test_a_smaller_limit_of_the_model_holds_too(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"20x20 pixels, over the most that is read \(100\)"):
        read_upload(tmp_path / "a.png", PREPARATION | {"max_pixels": 100})


def test_no_file_and_a_model_that_does_not_say_its_preparation_are_told():
    with pytest.raises(UserError, match="no picture was chosen"):
        read_upload(None, PREPARATION)
    with pytest.raises(UserError, match="does not say how its images were prepared"):
        read_upload(Path("a.png"), {})
