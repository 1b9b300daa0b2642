"""Files that are no regular ones are never waited for, and of large ones no more is read than a limit allows."""

from __future__ import annotations

import os
import resource
import socket
import struct
import tracemalloc
import zipfile
import zlib

import pytest
from image_sources import contents, png, table, write_images, write_parquet
from PIL import Image

from stage0_images.pixels import decoding, is_image, largest_grey, read_image
from stage0_images.reading import HEADER_BYTES, BadImage, DiskFile, encoded


def test_what_is_no_regular_file_is_never_waited_for(opened, in_tmp, refused):
    folder = write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2})
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "dog" / "endless.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "unix"))
    source = opened(folder)
    assert contents(source.splits["train"]) == [1, 2]
    assert {one.file for one in source.aside} == {"cat/pipe.png", "dog/endless.png", "unix"}
    for name in ("cat/pipe.png", "dog/endless.png"):  # as if the file had been exchanged after the listing
        assert not is_image(DiskFile(folder / name))
        with pytest.raises(BadImage, match="not a regular file"), encoded(DiskFile(folder / name), 100):
            pass
    parquet = write_parquet(in_tmp / "tables", train=table([1]))
    os.mkfifo(parquet / ".huggingface.yaml")  # `datasets` would wait for it
    assert ".huggingface.yaml: a pipe, a socket or a device; remove it" in refused(parquet)


HUGE = 600 * 2**20


def huge_header(file):
    """Write a PNG file whose header has a chunk of 600 MiB of zeros."""
    size = b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    file.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(size) - 4) + size + struct.pack(">I", zlib.crc32(size)))
    file.write(struct.pack(">I", HUGE) + b"eXIf")


@pytest.mark.parametrize("zipped", [False, True])
def test_an_unnamed_file_with_a_huge_header_is_not_read_and_set_aside(opened, in_tmp, zipped):
    folder = in_tmp / "pets"
    folder.mkdir()
    if zipped:
        with zipfile.ZipFile(folder / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("1.png", png(1))
            with archive.open("x.dat", "w") as file:
                huge_header(file)
                for _ in range(HUGE // 2**20):
                    file.write(bytes(2**20))
    else:
        (folder / "1.png").write_bytes(png(1))
        with (folder / "x.dat").open("wb") as file:
            huge_header(file)
            file.truncate(file.tell() + HUGE)
    tracemalloc.start()
    try:
        source = opened(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * HEADER_BYTES
    assert contents(source.splits["train"]) == [1]
    assert {one.file for one in source.aside} == {"more/x.dat" if zipped else "x.dat"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_an_image_is_known_by_its_contents(in_tmp, kind):
    Image.new("RGB", (40, 30), (200, 30, 60)).save(in_tmp / "x.dat", kind)
    assert is_image(DiskFile(in_tmp / "x.dat"))


def test_metadata_that_is_a_pipe_or_huge_is_not_used(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"1.png": 1})
    with (folder / "metadata.csv").open("wb") as file:
        file.truncate(2**40)
    assert "not used, since it cannot be read (a file of 1099511627776 bytes" in opened(folder).notes[0]


def peak() -> int:
    """The largest memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_sparse_file_is_refused_without_being_read(in_tmp, params):
    (in_tmp / "sparse.png").write_bytes(png(1))
    os.truncate(in_tmp / "sparse.png", 2 * 2**30)
    before = peak()
    with decoding(), pytest.raises(BadImage, match="a file of 2147483648 bytes, over the 816777216 that are read"):
        read_image(DiskFile(in_tmp / "sparse.png"), params().data)
    assert largest_grey(DiskFile(in_tmp / "sparse.png"), 10**8) is None
    assert peak() - before < 2**26
