"""`prepare` end to end: what it publishes, what it refuses, and that a failure leaves the old output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage0_images.prepare import main, mean_and_variance
from tessera.artifacts.files import file_hash
from tessera.images.prepared import open_prepared

PREPARED = Path("data/prepared")


@pytest.fixture
def prepare(in_tmp, raw_params):
    """`prepare(source=..., height=...)` in an empty folder: the exit status; `data.watch` follows the source."""
    (in_tmp / "data").mkdir()
    (in_tmp / "data" / "embedded.txt").touch()

    def run(**changes) -> int:
        source = changes.get("source", "digits")
        changes = {"watch": "data/embedded.txt" if source == "digits" else source} | changes
        raw_params["data"] |= changes
        Path("params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")
        return main([])

    return run


def write_images(folder: Path, count: int, size: tuple[int, int] = (12, 10), classes: bool = True) -> None:
    """Image i has the shade i; its class is i's parity."""
    for i in range(count):
        file = folder / (f"odd/{i:03}.png" if i % 2 else f"even/{i:03}.png") if classes else folder / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, i, i)).save(file)


def hashes() -> dict[str, str]:
    return {str(file): file_hash(file) for file in sorted(PREPARED.rglob("*")) if file.is_file()}


def shades(split: str) -> list[int]:
    return open_prepared(PREPARED)[split].images[:, 0, 0, 0].tolist()


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


def spoil(folder: Path) -> dict[str, str]:
    """One bad image of each kind among good ones; returns a part of each one's reason."""
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(noise, "JPEG")
    (folder / "even" / "002.png").write_bytes(b"")
    (folder / "even" / "004.png").write_bytes(noise.getvalue()[:-100])
    (folder / "odd" / "005.png").write_bytes(b"not an image")
    Image.new("L", (40, 40)).save(folder / "odd" / "007.png")
    (folder / "odd" / "009.png").unlink()
    (folder / "odd" / "009.png").symlink_to("gone.png")
    return {
        "even/002.png": "empty file",
        "even/004.png": "truncated",
        "odd/005.png": "known format",
        "odd/007.png": "40x40 pixels, over data.max_pixels (900)",
        "odd/009.png": "unreadable file",
    }


def test_bad_images_are_quarantined_with_reasons_and_the_rest_is_kept(prepare, capsys):
    write_images(Path("pets"), 50)
    reasons = spoil(Path("pets"))
    assert prepare(source="pets", max_pixels=900, max_bad_fraction=0.1) == 0
    text = (PREPARED / "quarantine.jsonl").read_text()
    rows = {row["file"]: row for row in map(json.loads, text.splitlines())}
    assert rows.keys() == reasons.keys() and str(Path.cwd()) not in text and "0x7" not in text
    for file, row in rows.items():
        assert row.keys() == {"split", "index", "file", "reason"} and reasons[file] in row["reason"]
        assert row["split"] == "train"
    order = sorted(path.relative_to("pets").as_posix() for path in Path("pets").rglob("*.png"))
    assert {file: order.index(file) for file in rows} == {file: row["index"] for file, row in rows.items()}
    kept = sorted(chain(*(shades(name) for name in ("train", "validation", "test"))))
    assert kept == [i for i in range(50) if i not in (2, 4, 5, 7, 9)]
    assert "5 refused" in capsys.readouterr().out
    first = hashes()
    assert prepare(source="pets", max_pixels=900, max_bad_fraction=0.1) == 0
    assert hashes() == first


def test_over_max_bad_fraction_it_stops_with_the_whole_list_and_leaves_the_old_output(prepare, capsys):
    write_images(Path("pets"), 50)
    assert prepare(source="pets") == 0
    before = hashes()
    reasons = spoil(Path("pets"))
    Path("pets/odd/note.txt").touch()
    capsys.readouterr()
    assert prepare(source="pets", max_pixels=900, max_bad_fraction=0.01) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "5 of 50 images refused" in error and "max_bad_fraction (0.01)" in error
    assert "even/002.png: empty file" in error or "odd/005.png: not an image" in error
    assert "data/quarantine.jsonl lists them all" in error
    rows = {
        row["file"]: row["reason"] for row in map(json.loads, Path("data/quarantine.jsonl").read_text().splitlines())
    }
    assert rows.keys() == reasons.keys() | {"odd/note.txt"} and all(reasons[file] in rows[file] for file in reasons)
    assert hashes() == before and not list(Path("data").glob(".*"))
    assert prepare(source="pets", max_pixels=900, max_bad_fraction=0.1) == 0
    assert not Path("data/quarantine.jsonl").exists(), "the list in data/prepared takes its place"


def test_files_that_are_not_read_are_listed_and_counted(prepare, capsys):
    write_images(Path("pets"), 20)
    for name in ("1.HEIC", "2.heic", "note.txt"):
        Path("pets", name).write_bytes(b"x")
    Path("pets/@eaDir").mkdir()
    assert prepare(source="pets") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith(
        "2 classes, 0 refused, left aside: 2 .heic, 1 .txt, 1 system folders named @eaDir "
        "(listed in data/prepared/quarantine.jsonl)"
    )
    rows = [json.loads(row) for row in (PREPARED / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == ["1.HEIC", "2.heic", "@eaDir", "note.txt"]
    assert all(row["split"] is None and row["index"] is None and row["reason"] for row in rows)


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


def test_a_file_name_that_is_not_utf8_is_read_or_listed_by_escapes(prepare):
    write_images(Path("pets"), 40, classes=False)
    os.rename("pets/000.png", b"pets/caf\xe9.png")
    with open(b"pets/\xff.png", "wb") as file:
        file.write(b"no image")
    assert prepare(source="pets", max_bad_fraction=0.1) == 0
    assert sum(open_prepared(PREPARED).stats.images.values()) == 40
    rows = [json.loads(row) for row in (PREPARED / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["file"] for row in rows] == ["\\xff.png"]


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


def test_a_split_whose_images_are_all_refused_stops_it(prepare, capsys):
    write_images(Path("pets/train"), 20, classes=False)
    write_images(Path("pets/test"), 1, classes=False)
    Path("pets/test/000.png").write_bytes(b"")
    assert prepare(source="pets", max_bad_fraction=0.5) == 2
    assert "1 of 21 images refused, all of the split test" in capsys.readouterr().err
    assert not PREPARED.exists()


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
