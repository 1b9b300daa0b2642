"""Folders in which no image can be read are named if they may hold pictures: each might be a split or a class."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_sources import values_of, write_images


def pets(folder: Path, images: list[str], others: list[str]) -> Path:
    write_images(folder, dict.fromkeys(images, 1))
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(
    ("images", "others", "named"),
    [
        (["cat/1.png"], ["dog/2.HEIC"], "dog"),
        (["pets/cat/1.png"], ["pets/dog/2.heic"], "pets/dog"),
        (["cat/in/1.png", "cat/out/2.png"], ["dog/in/3.heic", "dog/notes.txt", "4.heic"], "dog"),
        (["train/cat/1.png", "train/dog/2.png"], ["test/cat/3.heic", "test/dog/4.heic"], "test"),
        (["train/1.png"], ["test/3.heic"], "test"),
        (["train/cat/1.png", "test/2.png"], ["train/dog/3.heic"], "train/dog"),
        (["train/cat/1.png", "test/cat/3.png"], ["train/dog/4.HEIC", "train/cat/5.HEIC"], "train/dog"),
        (["images/1.png"], ["raw\n/1.NEF"], "raw\\n"),
    ],
)
def test_a_folder_of_pictures_that_cannot_be_read_is_named(opened, in_tmp, images, others, named):
    folder = pets(in_tmp / "pets", images, others)
    note = (
        f"no image can be read in the folder {named}; convert the pictures there to PNG or JPEG, or they are not used"
    )
    assert opened(folder).notes == opened(folder, use_labels=False).notes == (note,)


def test_of_many_folders_of_pictures_the_first_are_named(opened, in_tmp):
    source = opened(pets(in_tmp / "pets", ["cat/1.png", "fox/2.png"], [f"{name}/deep/3.HEIC" for name in "fedcba"]))
    assert source.classes == ("cat", "fox") and source.notes == (
        "no image can be read in 6 folders (a, b, c, d, e, ...); convert the pictures there to PNG or JPEG, or they "
        "are not used",
    )


def test_a_folder_of_pictures_is_named_beside_images_with_metadata(opened, in_tmp):
    folder = pets(in_tmp / "pets", ["train/1.png", "train/2.png", "train/3.png", "train/4.png"], ["test/5.heic"])
    rows = "".join(f"train/{number}.png,{number % 2}\n" for number in range(1, 5))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    source = opened(folder)
    assert source.classes == ("0", "1") and values_of(source.splits["train"]) == [1] * 4
    assert len(source.notes) == 1 and "in the folder test;" in source.notes[0]


def test_a_refusal_names_the_folder_of_pictures_that_would_have_been_the_training_split(in_tmp, refused):
    message = refused(pets(in_tmp / "pets", ["test/cat/1.png", "test/dog/2.png"], ["train/cat/3.heic"]))
    assert "no training split" in message and "no image can be read in the folder train;" in message


@pytest.mark.parametrize(
    ("images", "others"),
    [
        (["cat/1.png", "fox/2.png"], ["fox/3.HEIC", "4.heic", "notes.txt"]),
        (["images/1.png"], ["annotations/1.xml"]),
        (["cat/1.png", "fox/2.png"], ["notes/about.txt", "notes/.hidden.heic"]),
        (["train/1.png", "test/2.png"], ["notes.txt", "train.txt"]),
    ],
)
def test_other_folders_need_no_note(opened, in_tmp, images, others):
    assert opened(pets(in_tmp / "pets", images, others)).notes == ()
