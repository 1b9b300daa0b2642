"""Checked arrays: they read as numpy reads, and no damaged byte is ever handed out."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from written_parts import write_parts

from tessera.artifacts import checked
from tessera.artifacts.arrays import ArrayWriter, array_parts
from tessera.artifacts.checked import CheckedArray, PartedArray, open_parts
from tessera.artifacts.manifests import BLOCK, Manifest, open_manifest, read_manifest
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError

ROW = 5000  # bytes; 1,000 rows fill five blocks, and many rows lie in two of them
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (1000, ROW), dtype=np.uint8)
WIDE = RANDOM.integers(0, 256, (3, BLOCK * 3 // 2), dtype=np.uint8)  # a row spans up to three blocks


def publish(folder: Path, array: np.ndarray) -> Manifest:
    with (
        publishing(folder, "prepared", {}) as staging,
        ArrayWriter(staging / "a.npy", array.shape[1:], array.dtype) as w,
    ):
        w.append(array)
    return open_manifest(folder, "prepared")


def nearby(position: int, offset: int, row_bytes: int, count: int) -> list[int]:
    """The row that holds a byte of the file, and its neighbours."""
    row = (position - offset) // row_bytes
    return [near for near in (row - 1, row, row + 1) if 0 <= near < count]


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


KEYS = [
    slice(None),
    slice(3, 700),
    slice(990, 2000),
    slice(-5, None),
    slice(900, 10, -7),
    slice(5, 5),
    0,
    -1,
    np.int64(999),
    np.array([999, 0, 5, 5, -1000]),
    [1, 2],
    np.array([], dtype=np.int64),
    np.array([[1, 2], [998, -2]]),
    np.arange(1000) % 3 == 0,
]


def test_rows_are_numpys(tmp_path):
    manifest = publish(tmp_path / "d", PIXELS)
    for key in KEYS:
        array = CheckedArray(manifest, "a.npy")
        assert (array.shape, array.dtype, len(array)) == (PIXELS.shape, PIXELS.dtype, 1000)
        np.testing.assert_array_equal(array[key], PIXELS[key])


def test_items_of_rows_and_the_whole_array_are_numpys(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    np.testing.assert_array_equal(array[10:20, 7], PIXELS[10:20, 7])
    np.testing.assert_array_equal(array[..., 3], PIXELS[..., 3])
    np.testing.assert_array_equal(np.asarray(array), PIXELS)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_every_shape_and_dtype_comes_back(tmp_path, shape, dtype):
    values = RANDOM.integers(0, 100, shape).astype(dtype)
    array = CheckedArray(publish(tmp_path / "d", values), "a.npy")
    assert array.dtype == dtype and array[:].shape == shape
    np.testing.assert_array_equal(array[:], values)


def test_random_access_is_numpys_for_rows_wider_than_a_block(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", WIDE), "a.npy")
    for rows in ([1], [2, 0], slice(1, 3)):
        np.testing.assert_array_equal(array[rows], WIDE[rows])


@pytest.mark.parametrize("row", [1000, -1001, np.array([0, 1000])])
def test_rows_beyond_the_end_are_numpys_error(tmp_path, row):
    with pytest.raises(IndexError):
        CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")[row]


def test_what_is_read_cannot_be_written(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    with pytest.raises(ValueError, match="read-only"):
        array[:5][0] = 1


@pytest.mark.parametrize("array", [PIXELS, WIDE], ids=["narrow", "wide"])
def test_a_flipped_bit_is_found_by_the_rows_that_share_its_block_and_by_no_others(tmp_path, array):
    manifest = publish(tmp_path / "d", array)
    row_bytes, offset = array.shape[1], len((tmp_path / "d" / "a.npy").read_bytes()) - array.size
    for position in (offset + BLOCK, 3 * BLOCK - 1, offset + array.size - 1):
        flip(tmp_path / "d" / "a.npy", position)
        opened = CheckedArray(manifest, "a.npy")
        for row in {*RANDOM.integers(0, len(array), 40).tolist(), *nearby(position, offset, row_bytes, len(array))}:
            first, last = ((offset + row * row_bytes) // BLOCK, (offset + (row + 1) * row_bytes - 1) // BLOCK)
            if first <= position // BLOCK <= last:
                with pytest.raises(UserError, match=r"a\.npy: bytes \d+ to \d+ differ .*stage0_images\.prepare"):
                    opened[[row]]
                with pytest.raises(UserError, match="differ"):
                    opened[row : row + 1]
            else:
                np.testing.assert_array_equal(opened[[row]], array[[row]])
        flip(tmp_path / "d" / "a.npy", position)


def test_a_block_is_hashed_once(tmp_path, monkeypatch):
    array, seen = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy"), []
    check = CheckedArray._check_block
    monkeypatch.setattr(CheckedArray, "_check_block", lambda self, block: (seen.append(block), check(self, block))[1])
    for _ in range(3):
        for rows in np.split(RANDOM.permutation(1000), 10):
            array[rows]
    assert sorted(seen) == list(range(1, 5)), "the first block is checked when the array is opened"


def test_a_header_that_is_damaged_is_found_on_opening(tmp_path):
    manifest = publish(tmp_path / "d", PIXELS)
    for position in (0, 6, 20, 60, 100):
        flip(tmp_path / "d" / "a.npy", position)
        with pytest.raises(UserError, match="differ"):
            CheckedArray(manifest, "a.npy")
        flip(tmp_path / "d" / "a.npy", position)


@pytest.mark.parametrize("kind", ["text", "pickled", "fortran", "scalar", "long", "empty"])
def test_what_is_no_plain_array_is_refused_even_if_the_manifest_vouches_for_it(tmp_path, kind):
    with publishing(tmp_path / "d", "prepared", {}) as staging:
        file = staging / "a.npy"
        if kind == "pickled":
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        elif kind in ("fortran", "scalar"):
            np.save(file, np.asfortranarray(PIXELS[:4]) if kind == "fortran" else np.array(3))
        else:
            np.save(file, PIXELS[:4])
            file.write_bytes({"text": b"hello, world", "long": file.read_bytes() + b"x", "empty": b""}[kind])
    with pytest.raises(UserError, match=r"not a readable \.npy array .*stage0_images\.prepare"):
        CheckedArray(open_manifest(tmp_path / "d", "prepared"), "a.npy")


def test_a_file_cut_while_it_is_read_is_one_line_and_no_crash(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    array[:3]
    os.truncate(tmp_path / "d" / "a.npy", BLOCK)
    with pytest.raises(UserError, match="changed while it was being read"):
        array[900:903]


def test_a_file_rewritten_while_it_is_open_is_noticed(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    array[:]
    flip(tmp_path / "d" / "a.npy", 500)  # of a block that was checked, and the size stays
    with pytest.raises(UserError, match="changed while it was being read"):
        array[:3]


def test_a_folder_published_anew_while_it_is_open_is_read_as_it_was(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    publish(tmp_path / "d", PIXELS[::-1])
    np.testing.assert_array_equal(array[:], PIXELS)


def test_a_file_replaced_while_it_is_closed_is_noticed(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    array.close()
    np.testing.assert_array_equal(array[7:9], PIXELS[7:9])
    array.close()
    publish(tmp_path / "d", PIXELS[::-1])
    with pytest.raises(UserError, match="changed while it was being read"):
        array[7:9]


def parted(folder: Path, rows: np.ndarray, part_rows: int) -> PartedArray:
    with publishing(folder, "codes", {}) as staging:
        write_parts(staging, array_parts("train", "codes", len(rows), part_rows), rows)
    return PartedArray(open_parts(open_manifest(folder, "codes"), "train", "codes", len(rows), part_rows))


@pytest.mark.parametrize("part_rows", [34, 250, 1000, 5000])
def test_parts_read_as_one_array(tmp_path, part_rows):
    rows = PIXELS[:, :6]
    array = parted(tmp_path / "c", rows, part_rows)
    assert (array.shape, array.dtype, len(array)) == (rows.shape, rows.dtype, 1000)
    for key in KEYS:
        np.testing.assert_array_equal(array[key], rows[key])


def test_an_array_of_many_parts_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(checked, "OPEN_PARTS", 5)
    array, rows = parted(tmp_path / "c", PIXELS[:200, :6], 4), PIXELS[:200, :6]
    for _ in range(5):
        places = RANDOM.integers(0, 200, 64)
        np.testing.assert_array_equal(array[places], rows[places])
        assert sum(part._map is not None for part in array.parts) <= 5
    np.testing.assert_array_equal(np.asarray(array), rows)


def test_an_array_of_more_parts_than_a_process_may_open_files_is_read(tmp_path):
    rows, (soft, hard) = PIXELS[:200, :6], resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/dev/fd")}
    free = [number for number in range(1000) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[25], hard))  # so 25 files more can be opened
    try:
        array = parted(tmp_path / "c", rows, 4)
        assert len(array.parts) > 25
        np.testing.assert_array_equal(np.asarray(array), rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_rows_beyond_the_parts_are_an_error(tmp_path):
    array = parted(tmp_path / "c", PIXELS[:20, :6], 7)
    for row in (20, -21, [3, 20]):
        with pytest.raises(IndexError):
            array[row]


def test_parts_of_another_size_or_number_are_refused(tmp_path):
    parted(tmp_path / "c", PIXELS[:20, :6], 7)
    manifest = open_manifest(tmp_path / "c", "codes")
    with pytest.raises(UserError, match=r"codes-00000\.npy: 7 rows instead of 8"):
        open_parts(manifest, "train", "codes", 20, 8)
    with pytest.raises(UserError, match=r"codes-00002\.npy: 6 rows instead of 7"):
        open_parts(manifest, "train", "codes", 21, 7)
    parted(tmp_path / "c", PIXELS[:21, :6], 7)
    manifest = open_manifest(tmp_path / "c", "codes")
    with pytest.raises(UserError, match=r"codes-00003\.npy: not listed in manifest\.json"):
        open_parts(manifest, "train", "codes", 22, 7)


def test_checking_an_array_needs_no_more_memory_than_a_block(tmp_path):
    """A file of 64 MiB is checked row by row and as a whole; what numpy and Python allocate stays below 8 MiB."""
    import tracemalloc

    with publishing(tmp_path / "d", "prepared", {}) as staging, ArrayWriter(staging / "a.npy", (BLOCK,), np.uint8) as w:
        for _ in range(64):
            w.append(np.zeros((1, BLOCK), np.uint8))
    tracemalloc.start()
    array = CheckedArray(read_manifest(tmp_path / "d", "prepared"), "a.npy")
    for row in range(64):
        assert not array[[row]].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * BLOCK
    assert re.fullmatch("[0-9a-f]{64}", array.manifest.files["a.npy"].blocks[0])


def test_a_file_that_is_gone_while_it_is_closed_was_changed_and_is_not_damaged(tmp_path):
    array = CheckedArray(publish(tmp_path / "d", PIXELS), "a.npy")
    array.close()
    (tmp_path / "d").rename(tmp_path / "retired")  # where folders cannot be exchanged, there is none for a moment
    with pytest.raises(UserError, match="changed while it was being read"):
        array[7:9]
