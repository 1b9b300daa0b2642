"""`prepare` end to end: what it publishes and says, and that a source that cannot be used leaves the old output."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shaded_images import PREPARED, hashes, shades, write_images

from stage0_images.prepare import mean_and_variance
from tessera.images.prepared import open_prepared


def test_digits_are_split_scaled_and_described(prepare, capsys):
    assert prepare() == 0
    prepared = open_prepared(PREPARED)
    assert prepared.stats.images == {"train": 1401, "validation": 144, "test": 252}
    assert prepared.stats.image_shape == (1, 8, 8) and prepared.stats.classes == tuple("0123456789")
    train = prepared["train"]
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    pixels = np.asarray(train.images)
    assert pixels.min() == 0 and pixels.max() == 255
    floats = pixels.astype(np.float64) / 127.5 - 1
    assert prepared.stats.mean == pytest.approx(floats.mean(), abs=1e-12)
    assert prepared.stats.variance == pytest.approx(floats.var(), abs=1e-12)
    assert (PREPARED / "quarantine.jsonl").read_text() == ""
    captured = capsys.readouterr()
    assert captured.out == (
        "data/prepared: train 1401, validation 144, test 252 images of 1x8x8, 10 classes, 0 refused\n"
    )
    assert captured.err == "", "no progress bar without a terminal"
    assert sorted(path.name for path in Path("data").iterdir()) == ["embedded.txt", "prepared"]


def test_digits_can_be_resized_into_coloured_rectangles(prepare):
    assert prepare(height=12, width=16, channels=3) == 0
    assert open_prepared(PREPARED)["test"].images.shape == (252, 3, 12, 16)


def test_the_same_input_writes_the_same_bytes_whatever_the_threads(prepare, raw_params):
    write_images(Path("pets"), 80)
    assert prepare(source="pets") == 0
    first = hashes()
    raw_params["runtime"]["threads"] = 1
    assert prepare(source="pets") == 0
    assert hashes() == first
    raw_params["runtime"]["threads"] = 7
    assert prepare(source="pets") == 0
    assert hashes() == first
    assert prepare(source="pets", split_seed=1) == 0
    assert hashes() != first


def test_cut_splits_share_no_image_and_lose_none(prepare):
    write_images(Path("pets"), 60)
    assert prepare(source="pets", validation_fraction=0.1, test_fraction=0.2) == 0
    parts = {name: shades(name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 42, "validation": 6, "test": 12}
    counts = open_prepared(PREPARED).stats.class_counts
    assert counts == {"train": [21, 21], "validation": [3, 3], "test": [6, 6]}, "of each class the same fraction"
    assert sorted(chain(*parts.values())) == list(range(60))
    prepared = open_prepared(PREPARED)
    for name, part in parts.items():
        assert np.asarray(prepared[name].labels).tolist() == [shade % 2 for shade in part], (
            "labels stay with their images"
        )


def test_splits_of_the_source_are_kept_and_only_the_missing_one_is_cut(prepare):
    write_images(Path("pets/train"), 20)
    write_images(Path("pets/test"), 6)
    assert prepare(source="pets", validation_fraction=0.25) == 0
    assert shades("test") == [0, 2, 4, 1, 3, 5]
    assert len(shades("validation")) == 5 and sorted(shades("train") + shades("validation")) == list(range(20))


def test_unlabelled_rectangles_go_through(prepare, capsys):
    write_images(Path("pets"), 20, classes=False)
    assert prepare(source="pets", height=6, width=10, channels=3) == 0
    prepared = open_prepared(PREPARED)
    assert prepared.stats.classes is None and prepared["train"].labels is None
    assert prepared["train"].images.shape[1:] == (3, 6, 10)
    assert not list(PREPARED.rglob("labels.npy"))
    assert "no labels" in capsys.readouterr().out


def test_what_the_source_was_taken_for_is_said(prepare, capsys):
    write_images(Path("pets"), 20)
    assert prepare(source="pets", image_column="img") == 0
    assert "\ndata/prepared: data.image_column: 'img' is not used" in capsys.readouterr().out


def test_a_class_without_training_images_is_said_and_counted(prepare, capsys):
    write_images(Path("pets/train"), 200)
    write_images(Path("pets/test"), 6)
    Path("pets/test/even").rename("pets/test/owl")
    assert prepare(source="pets") == 0
    output = capsys.readouterr().out
    assert "warning: 1 of 3 classes have no training image, so they are never sampled: owl\n" in output
    stats = open_prepared(PREPARED).stats
    assert stats.classes == ("even", "odd", "owl")
    assert stats.class_counts["test"] == [0, 3, 3] and stats.class_counts["train"][2] == 0
    assert json.loads((PREPARED / "stats.json").read_text())["class_counts"] == stats.class_counts
    for split in ("train", "validation"):
        labels = np.asarray(open_prepared(PREPARED)[split].labels)
        assert stats.class_counts[split] == np.bincount(labels, minlength=3).tolist()


def test_a_class_whose_training_folder_is_empty_is_said(prepare, capsys):
    write_images(Path("pets/train"), 200)
    write_images(Path("pets/test"), 6)
    Path("pets/test/even").rename("pets/test/owl")
    Path("pets/train/owl").mkdir()
    assert prepare(source="pets") == 0
    output = capsys.readouterr().out
    assert "warning: 1 of 3 classes have no training image, so they are never sampled: owl\n" in output
    assert open_prepared(PREPARED).stats.class_counts["train"][2] == 0


def test_a_split_that_is_not_used_is_said(prepare, capsys):
    write_images(Path("pets/train"), 60)
    write_images(Path("pets/test"), 6, classes=False)
    assert prepare(source="pets") == 0
    assert "; splits not used: test (no labels)\n" in capsys.readouterr().out


def write_greys(folder: str, largest: int, kind: type, ending: str) -> None:
    Path(folder).mkdir()
    ramp = np.linspace(0, largest, 64).reshape(8, 8)
    for i in range(20):
        Image.fromarray(np.roll(ramp, i).round().astype(kind)).save(f"{folder}/{i:02}.{ending}")


@pytest.mark.parametrize(
    ("largest", "kind", "ending", "said"),
    [
        (255, np.int32, "tif", "reach 255 of 65535; data.grey_range: [0, 255]"),
        (255, np.uint16, "tif", "reach 255 of 65535; data.grey_range: [0, 255]"),
        (4080, np.uint16, "png", "reach 4080 of 65535; data.grey_range: [0, 4095]"),
        (4080, np.uint16, "tif", "reach 4080 of 65535; data.grey_range: [0, 4095]"),
        (65535, np.uint16, "png", None),
        (255, np.uint8, "png", None),
        (60, np.uint8, "png", None),
        (1, np.uint8, "png", "lie between 0 and 1 of 0 to 255; are these the right images?"),
    ],
)
def test_pixels_of_a_small_part_of_the_range_are_a_warning(prepare, capsys, largest, kind, ending, said):
    write_greys("greys", largest, kind, ending)
    assert prepare(source="greys") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (1 if said is None else 2)
    assert said is None or ("warning: the training pixels lie between" in lines[1] and said in lines[1])


@pytest.mark.parametrize(
    ("shades", "background", "channels", "hidden"),
    [
        ((255,), [255, 255, 255], 3, True),
        ((255,), [0, 0, 0], 3, False),
        ((250, 0), [255, 255, 255], 1, True),
        ((30, 100), [255, 255, 255], 3, False),
        ((76,), [255, 0, 0], 1, True),  # red is the grey value 76
    ],
)
def test_drawings_that_vanish_on_their_background_are_a_warning(
    prepare, capsys, shades, background, channels, hidden
) -> None:
    Path("drawings").mkdir()
    for number in range(20):
        pixels = np.full((8, 8, 4), shades[number % len(shades)], np.uint8)
        pixels[..., 3] = np.eye(8) * 255
        pixels[0, 0, :3] += np.uint8(number % 4)  # or all pixels of all images might be equal, which is refused
        Image.fromarray(pixels).save(f"drawings/{number:02}.png")
    assert prepare(source="drawings", background=background, channels=channels) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("training images show nothing but data.background" in line for line in lines) is hidden, lines


def test_grey_range_uses_the_whole_range(prepare, capsys):
    write_greys("greys", 4080, np.uint16, "png")
    assert prepare(source="greys", grey_range=[0, 4080]) == 0
    assert np.asarray(open_prepared(PREPARED)["train"].images).max() == 255
    assert "warning" not in capsys.readouterr().out
    assert open_prepared(PREPARED).stats.preparation["grey_range"] == [0, 4080]


@pytest.mark.parametrize("source", ["gone", "empty", "texts", "owner/name", "broken"])
def test_a_source_that_cannot_be_used_leaves_the_old_output(prepare, capsys, source):
    assert prepare() == 0
    before = hashes()
    capsys.readouterr()
    for name in ("empty", "texts", "broken"):
        Path(name).mkdir()
    Path("texts/a.txt").touch()
    Path("broken/train.parquet").write_bytes(b"PAR1 and no more")
    watch = source if Path(source).exists() else "data/embedded.txt"
    assert prepare(source=source, watch=watch) == 2
    captured = capsys.readouterr()
    assert captured.err.removeprefix("error: ").removeprefix("params.yaml: ").startswith("data.")
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert hashes() == before and not list(Path("data").glob(".*"))


def test_mean_and_variance_are_exact():
    values = np.random.default_rng(0).integers(0, 256, 10_000)
    mean, variance = mean_and_variance(np.bincount(values, minlength=256))
    floats = values / 127.5 - 1
    assert mean == pytest.approx(floats.mean(), abs=1e-14) and variance == pytest.approx(floats.var(), abs=1e-14)
    assert mean_and_variance(np.bincount([128] * 7, minlength=256)) == (1 / 255, 0.0)


def test_help_imports_neither_torch_nor_datasets(repository):
    code = (
        "import sys, runpy; sys.argv = ['prepare', '--help']\n"
        "try: runpy.run_module('stage0_images.prepare', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'datasets', 'PIL', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data/prepared" in done.stdout


def test_images_of_one_colour_are_refused(prepare, capsys):
    for i in range(20):
        write_images(Path("blank") / str(i), 1, classes=False)
    assert prepare(source="blank", use_labels=False) == 2
    assert "every training pixel has the same value" in capsys.readouterr().err
    assert not PREPARED.exists()
