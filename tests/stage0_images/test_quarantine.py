"""Refused images, and files that are not read, are listed with reasons; too many refused images stop `prepare`."""

from __future__ import annotations

import io
import json
import os
import re
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from shaded_images import PREPARED, hashes, shades, write_images

from tessera.images.prepared import open_prepared


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
    assert re.search(r"5 refused \(first: train even/002\.png: empty file.*\) \(listed in", capsys.readouterr().out)
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
        "2 classes, 0 refused, left aside: 2 .heic, 1 .txt, 1 @eaDir (system folder) "
        "(listed in data/prepared/quarantine.jsonl)"
    )
    rows = [json.loads(row) for row in (PREPARED / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == ["1.HEIC", "2.heic", "@eaDir", "note.txt"]
    assert all(row["split"] is None and row["index"] is None and row["reason"] for row in rows)


def test_a_file_name_that_is_not_utf8_is_read_or_listed_by_escapes(prepare):
    write_images(Path("pets"), 40, classes=False)
    os.rename("pets/000.png", b"pets/caf\xe9.png")
    with open(b"pets/\xff.png", "wb") as file:
        file.write(b"no image")
    assert prepare(source="pets", max_bad_fraction=0.1) == 0
    assert sum(open_prepared(PREPARED).stats.images.values()) == 40
    rows = [json.loads(row) for row in (PREPARED / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["file"] for row in rows] == ["\\xff.png"]


def test_a_split_whose_images_are_all_refused_stops_it(prepare, capsys):
    write_images(Path("pets/train"), 20, classes=False)
    write_images(Path("pets/test"), 1, classes=False)
    Path("pets/test/000.png").write_bytes(b"")
    assert prepare(source="pets", max_bad_fraction=0.5) == 2
    assert "1 of 21 images refused, all of the split test" in capsys.readouterr().err
    assert not PREPARED.exists()


def test_images_of_one_colour_stop_it_with_the_list_if_there_is_anything_to_list(prepare, capsys):
    for number in range(20):
        write_images(Path("blank") / str(number), 1, classes=False)
    assert prepare(source="blank", use_labels=False) == 2
    assert capsys.readouterr().err.endswith("data.background and data.grey_range\n")
    assert not Path("data/quarantine.jsonl").exists()
    Path("blank/note.txt").touch()
    Path("blank/0/000.png").write_bytes(b"")
    assert prepare(source="blank", use_labels=False, max_bad_fraction=0.1) == 2
    error = capsys.readouterr().err
    assert "every training pixel has the same value" in error and error.count("\n") == 1
    assert error.endswith("; data/quarantine.jsonl lists what was refused or left aside\n")
    rows = [json.loads(row) for row in Path("data/quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["reason"][:5]) for row in rows] == [("0/000.png", "empty"), ("note.txt", "not a")]
