"""Damage anywhere in data/prepared and data/codes is found before a damaged value is used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import written_parts

from tessera.artifacts.arrays import ArrayWriter
from tessera.artifacts.files import json_text
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.codes.store import open_codes
from tessera.errors import UserError
from tessera.images.prepared import Stats, open_prepared

COUNTS = {"train": 700, "validation": 60, "test": 50}
SHAPE = (3, 24, 32)  # the training images fill two blocks
LAYOUT = CodeLayout(SHAPE, (Level(2, 3, 1, 300), Level(4, 6, 2, 20)))
CLASSES = ("cat", "dog", "owl")


def labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) % 3


def write_prepared(folder: Path) -> dict[str, np.ndarray]:
    values, written = np.random.default_rng(0), {}
    stats = Stats(SHAPE, CLASSES, COUNTS, 0.0, 0.3)
    with publishing(folder, "prepared", {}) as staging:
        for name, count in COUNTS.items():
            written[name] = values.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
            with ArrayWriter(staging / name / "images.npy", SHAPE, np.uint8) as writer:
                writer.append(written[name])
            with ArrayWriter(staging / name / "labels.npy", (), np.int64) as writer:
                writer.append(labels(count))
        (staging / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")
        (staging / "quarantine.jsonl").write_text('{"index": 3}\n', encoding="utf-8")
    return written


def write_codes(folder: Path) -> dict[str, np.ndarray]:
    values, written = np.random.default_rng(0), {}
    with publishing(folder, "codes", {"vqvae": "a" * 64, "prepared": "b" * 64}) as staging:
        for name, count in COUNTS.items():
            written[name] = values.integers(0, LAYOUT.codebook_sizes.numpy(), (2, count, LAYOUT.num_tokens))
        numbers = {name: labels(count) for name, count in COUNTS.items()}
        written_parts.write_codes(staging, LAYOUT, CLASSES, written, numbers, part_rows=256)
    return written


def batches(count: int, chance: random.Random) -> Iterator[np.ndarray]:
    """All rows in a random order, as training reads them."""
    order = np.array(chance.sample(range(count), count))
    for start in range(0, count, 64):
        yield order[start : start + 64]


def use_prepared(folder: Path, written: dict[str, np.ndarray], chance: random.Random) -> None:
    prepared = open_prepared(folder)
    assert prepared.stats == Stats(SHAPE, CLASSES, COUNTS, 0.0, 0.3)
    for name, split in prepared.splits.items():
        for rows in batches(len(split), chance):
            assert np.array_equal(split.pixels(rows).numpy(), written[name][rows])
            assert np.array_equal(split.label_tensor(rows).numpy(), labels(COUNTS[name])[rows])


def use_codes(folder: Path, written: dict[str, np.ndarray], chance: random.Random) -> None:
    codes = open_codes(folder)
    assert codes.layout == LAYOUT and codes.classes == CLASSES
    for name, split in codes.splits.items():
        for rows in batches(len(split), chance):
            passes = np.array([chance.randrange(2) for _ in rows])
            assert np.array_equal(split.rows(rows, passes).numpy(), written[name][passes, rows])
            assert np.array_equal(split.rows(rows, 1 - passes).numpy(), written[name][1 - passes, rows])
            assert np.array_equal(split.label_tensor(rows).numpy(), labels(COUNTS[name])[rows])


@pytest.mark.parametrize(("write", "use"), [(write_prepared, use_prepared), (write_codes, use_codes)])
def test_flips_and_truncations_are_all_found_and_no_damaged_value_is_handed_out(tmp_path, write, use):
    """100 flipped bits and 25 truncations a folder. Half of them fall on a file, half on a byte of all files."""
    written, chance = write(tmp_path / "data"), random.Random(0)
    use(tmp_path / "data", written, chance)
    files = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    sizes = [file.stat().st_size for file in files]
    for number in range(125):
        file = chance.choice(files) if number % 2 else chance.choices(files, sizes)[0]
        whole = file.read_bytes()
        place = chance.randrange(len(whole))
        if number < 100:
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        else:
            file.write_bytes(whole[:place])
        with pytest.raises(UserError) as caught:
            use(tmp_path / "data", written, chance)  # whatever it gives before the error is what was written
        assert str(file) in str(caught.value) and "\n" not in str(caught.value), (file, place)
        file.write_bytes(whole)
    use(tmp_path / "data", written, chance)
