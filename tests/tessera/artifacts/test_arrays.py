"""Arrays on disk: what is appended is what numpy reads, and how arrays are divided into parts."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.artifacts import arrays
from tessera.artifacts.arrays import ArrayWriter, array_parts, join_pieces


def test_appended_blocks_are_one_plain_npy_array(tmp_path):
    blocks = [np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3) for n in (1, 4, 0, 7)]
    with ArrayWriter(tmp_path / "deep" / "a.npy", (2, 3), np.uint8) as writer:
        for block in blocks:
            writer.append(block)
    assert np.array_equal(np.load(tmp_path / "deep" / "a.npy"), np.concatenate(blocks))


def test_the_header_grows_with_the_count(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (1,), np.uint8) as writer:
        for _ in range(12):
            writer.append(np.ones((10_000, 1), np.uint8))
    assert np.load(tmp_path / "a.npy").shape == (120_000, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_the_dtype_asked_for_is_the_one_on_disk(tmp_path, dtype):
    with ArrayWriter(tmp_path / "a.npy", (2,), dtype) as writer:
        writer.append(np.array([[1, 2]]))
    assert np.load(tmp_path / "a.npy").dtype == dtype


def test_no_block_at_all_is_an_empty_array(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (3, 4), np.uint8):
        pass
    assert np.load(tmp_path / "a.npy").shape == (0, 3, 4)


def test_labels_are_items_without_a_shape(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (), np.int64) as writer:
        writer.append(np.array([3, 1]))
    assert np.load(tmp_path / "a.npy").tolist() == [3, 1]


def test_a_block_of_another_shape_is_refused(tmp_path):
    with ArrayWriter(tmp_path / "a.npy", (2, 3), np.uint8) as writer, pytest.raises(ValueError, match=r"\(2, 3\)"):
        writer.append(np.zeros((1, 3, 2), np.uint8))


@pytest.mark.parametrize("values", [[0, 256], [-1, 3]])
def test_numbers_that_do_not_fit_are_refused(tmp_path, values):
    with ArrayWriter(tmp_path / "a.npy", (), np.uint8) as writer, pytest.raises(ValueError, match="do not fit uint8"):
        writer.append(np.array(values))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11])
def test_parts_are_the_rows_in_order_a_few_to_a_part(count):
    parts = array_parts("train/pass-001", "codes", count, 4)
    assert [row for part in parts for row in range(count)[part.rows]] == list(range(count))
    assert all(part.rows.stop - part.rows.start == 4 for part in parts[:-1]) and len(parts) == max(1, -(-count // 4))
    assert [part.name for part in parts][:2] == [f"train/pass-001/codes-0000{n}.npy" for n in range(min(2, len(parts)))]


@pytest.mark.parametrize("counts", [(4, 4, 3), (4, 0, 3), (0, 0, 0), (1, 4, 2), (0, 3, 1)])
@pytest.mark.parametrize("at_once", [5, 2**24])
def test_pieces_that_several_writers_wrote_are_one_array(tmp_path, monkeypatch, counts, at_once):
    """Three writers begin at rows 0, 4 and 8, and write some rows each."""
    monkeypatch.setattr(arrays, "MOVED_AT_ONCE", at_once)
    path, rows = tmp_path / "deep" / "a.npy", np.arange(11 * 6, dtype=np.uint16).reshape(11, 2, 3)
    ArrayWriter(path, (2, 3), np.uint16).close()
    pieces = [slice(start, start + count) for start, count in zip((0, 4, 8), counts, strict=True)]
    for piece in pieces[::-1]:
        with ArrayWriter(path, (2, 3), np.uint16, piece.start) as writer:
            for row in rows[piece]:
                writer.append(row[None])
    join_pieces(path, (2, 3), np.uint16, pieces)
    with ArrayWriter(tmp_path / "whole.npy", (2, 3), np.uint16) as writer:
        writer.append(np.concatenate([rows[piece] for piece in pieces]))
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
