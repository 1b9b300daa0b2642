"""Folders beside those of the classes in which no image can be read are named, since they might be classes too."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_sources import write_images

CONVERT = "; convert the images there to PNG or JPEG, if there are any"
LEFT = "; with one folder left, there are no labels"


def pets(folder: Path, images: list[str], others: list[str]) -> Path:
    write_images(folder, dict.fromkeys(images, 1))
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.mark.parametrize(
    ("images", "others", "classes", "said"),
    [
        (["cat/1.png"], ["dog/2.HEIC"], None, f"the folder dog, so it is no class{LEFT}"),
        (["pets/cat/1.png"], ["pets/dog/2.heic"], None, f"the folder pets/dog, so it is no class{LEFT}"),
        (["cat/1.png", "fox/2.png"], ["dog/3.HEIC"], ("cat", "fox"), "the folder dog, so it is no class"),
        (
            ["cat/1.png", "fox/2.png"],
            [f"{name}/deep/3.HEIC" for name in "abcdef"],
            ("cat", "fox"),
            "6 folders, so they are no classes: a, b, c, d, e, ...",
        ),
        (
            ["train/cat/1.png", "train/fox/2.png", "test/cat/3.png"],
            ["train/dog/4.HEIC", "test/dog/5.HEIC"],
            ("cat", "fox"),
            "2 folders, so they are no classes: test/dog, train/dog",
        ),
        (
            ["train/cat/1.png", "test/cat/3.png"],
            ["train/dog/4.HEIC"],
            None,
            f"the folder train/dog, so it is no class{LEFT}",
        ),
    ],
)
def test_a_folder_beside_classes_without_an_image_is_named(opened, in_tmp, images, others, classes, said):
    folder = pets(in_tmp / "pets", images, others)
    source = opened(folder)
    assert source.classes == classes and source.notes == (f"no image can be read in {said}{CONVERT}",)
    assert opened(folder, use_labels=False).notes == ()


@pytest.mark.parametrize(
    ("images", "others"),
    [
        (["cat/1.png", "fox/2.png"], ["cat/raw/1.HEIC", "fox/3.HEIC", "notes.txt"]),
        (["archive/cat/1.png", "archive/fox/2.png"], ["notes/about.txt"]),
        (["train/cat/1.png", "train/fox/2.png", "test/fox/3.png"], ["test/cat/4.HEIC"]),
        (["1.png", "2.png"], ["notes/about.txt"]),
        (["cat/1.png", "2.png"], ["notes/about.txt"]),
        (["train/1.png", "test/2.png"], ["notes.txt", "train.txt"]),
    ],
)
def test_other_folders_need_no_note(opened, in_tmp, images, others):
    assert opened(pets(in_tmp / "pets", images, others)).notes == ()
