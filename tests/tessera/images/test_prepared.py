"""Prepared images: pixels on disk, floats in a model, and back without loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.artifacts.files import json_text
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import Stats, open_prepared

STATS = Stats((3, 4, 6), ("cat", "dog"), {"train": 5, "validation": 2, "test": 2}, -0.1, 0.25)


def publish(folder: Path, stats: Stats = STATS, labels: bool = True) -> dict[str, np.ndarray]:
    rng, written = np.random.default_rng(0), {}
    with publishing(folder, "prepared", {}) as staging:
        for name, count in STATS.images.items():
            (staging / name).mkdir()
            written[name] = rng.integers(0, 256, (count, 3, 4, 6), dtype=np.uint8)
            np.save(staging / name / "images.npy", written[name])
            if labels:
                np.save(staging / name / "labels.npy", np.arange(count) % 2)
        (staging / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
    return written


def test_every_pixel_value_survives_the_way_to_float_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32
    assert (floats[0].item(), floats[-1].item()) == (-1.0, 1.0)
    exact = pixels.double() / 127.5 - 1
    assert torch.allclose(floats.double(), exact, atol=1e-6)
    assert torch.equal(to_uint8(floats), pixels)
    assert torch.equal(to_uint8(floats.bfloat16().float()), to_uint8(floats.bfloat16()))


def test_floats_go_to_the_nearest_pixel_and_are_clipped():
    floats = torch.tensor([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 3.0])
    assert to_uint8(floats).tolist() == [0, 0, 0, 1, 255, 255]


def test_conversion_leaves_its_argument_alone():
    pixels, floats = torch.tensor([3], dtype=torch.uint8), torch.tensor([5.0])
    to_float(pixels)
    to_uint8(floats)
    assert (pixels.item(), floats.item()) == (3, 5.0)


def test_open_prepared_gives_splits_labels_and_statistics(tmp_path):
    written = publish(tmp_path / "prepared")
    prepared = open_prepared(tmp_path / "prepared")
    assert prepared.stats == STATS and prepared.stats.num_classes == 2
    train = prepared["train"]
    assert len(train) == 5
    rows = np.array([4, 0, 4])
    assert torch.equal(train.pixels(rows), torch.from_numpy(written["train"][rows]))
    assert train.label_tensor(rows).tolist() == [0, 0, 0] and train.label_tensor(slice(0, 2)).tolist() == [0, 1]
    train.pixels(slice(0, 1)).zero_()  # a copy: what is on disk stays
    assert torch.equal(train.pixels(slice(0, 1)), torch.from_numpy(written["train"][:1]))


def test_unlabelled_images_have_no_labels(tmp_path):
    publish(tmp_path / "prepared", Stats((3, 4, 6), None, STATS.images, 0.0, 1.0), labels=False)
    prepared = open_prepared(tmp_path / "prepared")
    assert prepared.stats.num_classes == 0 and prepared.stats.classes is None
    assert prepared["train"].label_tensor(slice(None)) is None


def test_statistics_survive_json():
    assert Stats.from_json(json.loads(json_text(STATS.to_json()))) == STATS


def test_images_of_another_shape_than_the_statistics_are_refused(tmp_path):
    publish(tmp_path / "prepared", Stats((3, 6, 4), None, STATS.images, 0.0, 1.0))
    found = r"images\.npy: uint8 of shape \(2, 3, 4, 6\), expected uint8 \(2, 3, 6, 4\); .*-m stage0_images\.prepare"
    with pytest.raises(UserError, match=found):
        open_prepared(tmp_path / "prepared")


def test_missing_and_truncated_images_name_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no prepared here .*python -m stage0_images\.prepare"):
        open_prepared(tmp_path / "prepared")
    publish(tmp_path / "prepared")
    file = tmp_path / "prepared" / "train" / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"bytes instead of .*python -m stage0_images\.prepare"):
        open_prepared(tmp_path / "prepared")


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 2], [0, -1, 0, 1, 1]])
def test_a_label_without_a_class_is_refused_on_opening(tmp_path, labels):
    """Even if the manifest vouches for it: stages index by label."""
    publish(tmp_path / "prepared")
    files = {path: path.read_bytes() for path in (tmp_path / "prepared").rglob("*") if path.is_file()}
    with publishing(tmp_path / "prepared", "prepared", {}) as staging:
        for path, data in files.items():
            target = staging / path.relative_to(tmp_path / "prepared")
            target.parent.mkdir(exist_ok=True)
            if path.name != "manifest.json":
                target.write_bytes(data)
        np.save(staging / "train" / "labels.npy", np.array(labels))
    with pytest.raises(UserError, match=r"train/labels\.npy: label (2|-1) in row (4|1), expected 0 to 1; make it anew"):
        open_prepared(tmp_path / "prepared")


def test_labelled_data_without_labels_is_refused(tmp_path):
    publish(tmp_path / "prepared", labels=False)
    with pytest.raises(UserError, match=r"labels\.npy: not listed in manifest\.json"):
        open_prepared(tmp_path / "prepared")
