"""results/sample: samples written in parts read as one array, before and after they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from written_parts import write_parts

from tessera.artifacts.publishing import publishing
from tessera.errors import UserError
from tessera.images import samples
from tessera.images.samples import open_samples, sample_parts, write_description, written_images

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 3, 4, 6), dtype=np.uint8)


def publish(folder: Path, classes: int = 3, part_rows: int = 10) -> None:
    with publishing(folder, "samples", {}) as staging:
        write_parts(staging, sample_parts(("default", "unguided"), 23, part_rows), IMAGES)
        rows = np.array([22, 0, 10, 9])
        assert np.array_equal(written_images(staging / "default", rows, part_rows).numpy(), IMAGES[rows])
        labels = np.arange(23) % classes if classes else None
        write_description(staging, ["default", "unguided"], 23, (3, 4, 6), classes, part_rows, labels)


@pytest.mark.parametrize("part_rows", [1, 4, 10, 23, 100])
def test_samples_come_back_whatever_the_parts(tmp_path, part_rows):
    publish(tmp_path / "sample", part_rows=part_rows)
    found = open_samples(tmp_path / "sample")
    assert list(found) == ["default", "unguided"]
    for split in found.values():
        assert len(split) == 23 and np.array_equal(split.pixels(slice(None)).numpy(), IMAGES)
        assert split.label_tensor(slice(0, 4)).tolist() == [0, 1, 2, 0]
    parts = sorted(path.name for path in (tmp_path / "sample" / "default").glob("images-*"))
    assert parts == [f"images-{number:05d}.npy" for number in range(-(-23 // part_rows))]


@pytest.mark.parametrize("batch_size", [1, 7, 256, 1000, 1024, 5000])
def test_a_part_is_whole_batches(batch_size):
    rows = samples.part_rows(batch_size)
    assert rows % batch_size == 0 and (rows == batch_size or 512 < rows <= samples.PART_ROWS)
    assert samples.part_rows(None) == samples.PART_ROWS


def test_samples_of_a_model_without_classes_have_no_labels(tmp_path):
    publish(tmp_path / "sample", classes=0)
    assert open_samples(tmp_path / "sample")["default"].labels is None


def test_damaged_samples_are_refused(tmp_path):
    publish(tmp_path / "sample")
    file = tmp_path / "sample" / "default" / "images-00001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"images-00001\.npy.*python -m sampling\.sample"):
        open_samples(tmp_path / "sample")
