"""results/sample: samples written in parts read as one array, before and after they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessera.artifacts.publishing import publishing
from tessera.errors import UserError
from tessera.images.samples import open_samples, write_description, write_samples, written_images

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 3, 4, 6), dtype=np.uint8)


def publish(folder: Path, batch: int, classes: int = 3, part_rows: int = 10) -> None:
    with publishing(folder, "samples", {}) as staging:
        for kind in ("default", "unguided"):
            batches = (IMAGES[start : start + batch] for start in range(0, len(IMAGES), batch))
            write_samples(staging / kind, batches, np.arange(23) % classes if classes else None, part_rows)
        rows = np.array([22, 0, 10, 9])
        assert np.array_equal(written_images(staging / "default", rows, part_rows).numpy(), IMAGES[rows])
        write_description(staging, ["default", "unguided"], 23, (3, 4, 6), classes, part_rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("batch", [1, 4, 10, 23])
def test_samples_come_back_whatever_the_batches(tmp_path, batch):
    publish(tmp_path / "sample", batch)
    found = open_samples(tmp_path / "sample")
    assert list(found) == ["default", "unguided"]
    for split in found.values():
        assert len(split) == 23 and np.array_equal(split.pixels(slice(None)).numpy(), IMAGES)
        assert split.label_tensor(slice(0, 4)).tolist() == [0, 1, 2, 0]
    publish(tmp_path / "again", 23)
    assert contents(tmp_path / "sample") == contents(tmp_path / "again")
    parts = sorted(path.name for path in (tmp_path / "sample" / "default").glob("images-*"))
    assert parts == [f"images-0000{number}.npy" for number in range(3)]


def test_samples_of_a_model_without_classes_have_no_labels(tmp_path):
    publish(tmp_path / "sample", 5, classes=0)
    assert open_samples(tmp_path / "sample")["default"].labels is None


def test_damaged_samples_are_refused(tmp_path):
    publish(tmp_path / "sample", 5)
    file = tmp_path / "sample" / "default" / "images-00001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"images-00001\.npy.*python -m sampling\.sample"):
        open_samples(tmp_path / "sample")
