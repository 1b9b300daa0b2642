"""Arrays on disk: what is appended is what numpy reads, in one file and in parts."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.artifacts.arrays import ArrayWriter, PartWriter, part_count, part_name


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
@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_parts_are_the_array_cut_every_few_rows_whatever_the_blocks(tmp_path, count, block):
    rows = np.arange(count * 3, dtype=np.uint16).reshape(count, 3)
    with PartWriter(tmp_path / "p", "codes", (3,), np.uint16, 4) as writer:
        for start in range(0, count, block):
            writer.append(rows[start : start + block])
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == [part_name("codes", number) for number in range(part_count(count, 4))]
    for number, name in enumerate(names):
        whole = tmp_path / "whole.npy"
        np.save(whole, rows[number * 4 : number * 4 + 4])
        assert (tmp_path / "p" / name).read_bytes() == whole.read_bytes()


def test_a_part_is_in_place_once_it_is_complete_and_not_before(tmp_path):
    def in_place() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("codes-*"))

    with pytest.raises(RuntimeError, match="killed"), PartWriter(tmp_path, "codes", (), np.uint8, 2) as writer:
        writer.append(np.array([1]))
        assert in_place() == []
        writer.append(np.array([2, 3, 4, 5]))
        assert in_place() == ["codes-00000.npy", "codes-00001.npy"]
        assert [np.load(tmp_path / name).tolist() for name in in_place()] == [[1, 2], [3, 4]]
        raise RuntimeError("killed")
    assert in_place() == ["codes-00000.npy", "codes-00001.npy"]
    assert len(list(tmp_path.iterdir())) == 2, "the unfinished part is gone"
