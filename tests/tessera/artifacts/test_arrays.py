"""Arrays on disk: what is appended is what numpy reads, and nothing else is read."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.artifacts.arrays import ArrayWriter, open_array
from tessera.errors import UserError


def test_appended_blocks_are_one_plain_npy_array(tmp_path):
    blocks = [np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3) for n in (1, 4, 0, 7)]
    with ArrayWriter(tmp_path / "deep" / "a.npy", (2, 3), np.uint8) as writer:
        for block in blocks:
            writer.append(block)
    expected = np.concatenate(blocks)
    assert np.array_equal(np.load(tmp_path / "deep" / "a.npy"), expected)
    assert np.array_equal(open_array(tmp_path / "deep" / "a.npy"), expected)


def test_the_header_grows_with_the_count(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (1,), np.uint8) as writer:
        for _ in range(12):
            writer.append(np.ones((10_000, 1), np.uint8))
    assert open_array(tmp_path / "a.npy").shape == (120_000, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_the_dtype_asked_for_is_the_one_on_disk(tmp_path, dtype):
    with ArrayWriter(tmp_path / "a.npy", (2,), dtype) as writer:
        writer.append(np.array([[1, 2]]))
    assert open_array(tmp_path / "a.npy").dtype == dtype


def test_no_block_at_all_is_an_empty_array(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (3, 4), np.uint8):
        pass
    assert np.load(tmp_path / "a.npy").shape == (0, 3, 4)


def test_labels_are_items_without_a_shape(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (), np.int64) as writer:
        writer.append(np.array([3, 1]))
    assert open_array(tmp_path / "a.npy").tolist() == [3, 1]


def test_a_block_of_another_shape_is_refused(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (2, 3), np.uint8) as writer, pytest.raises(ValueError, match=r"\(2, 3\)"):
        writer.append(np.zeros((1, 3, 2), np.uint8))


def test_an_opened_array_cannot_be_written(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        open_array(tmp_path / "a.npy")[0] = 1


@pytest.mark.parametrize("damage", ["missing", "empty", "header", "half", "text", "pickled"])
def test_what_is_no_plain_array_is_refused_in_one_line(tmp_path, damage):
    file = tmp_path / "a.npy"
    np.save(file, np.arange(100))
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "pickled":
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        file.write_bytes({"empty": b"", "header": whole[:20], "half": whole[:-8], "text": b"hello, world"}[damage])
    with pytest.raises(UserError, match="not a readable"):
        open_array(file)


@pytest.mark.parametrize("values", [[0, 256], [-1, 3]])
def test_numbers_that_do_not_fit_are_refused(tmp_path, values):
    with ArrayWriter(tmp_path / "a.npy", (), np.uint8) as writer, pytest.raises(ValueError, match="do not fit uint8"):
        writer.append(np.array(values))
