"""Splits and classes by the names of folders, as `datasets` and unpacked archives have them."""

from __future__ import annotations

import os
import zipfile

import numpy as np
import pytest
from image_sources import png, values_of, write_images

from stage0_images.splits import choose_splits, split_of


def test_class_folders_give_labels(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"dog/b.png": 2, "cat/deep/a.png": 1, "cat/.hidden.png": 9})
    source = opened(folder)
    split = source.splits["train"]
    assert source.classes == ("cat", "dog") and split.labels.tolist() == [0, 1] and values_of(split) == [1, 2]
    assert [image.file for image in split.fetch(np.arange(2))] == ["cat/deep/a.png", "dog/b.png"]
    assert opened(folder, use_labels=False).classes is None


def test_a_folder_without_class_folders_has_no_labels(opened, in_tmp):
    flat = opened(write_images(in_tmp / "flat", {"train_1.png": 1, "test_2.PNG": 2}))
    assert flat.classes is None and list(flat.splits) == ["train"] and flat.splits["train"].labels is None
    assert values_of(flat.splits["train"]) == [2, 1], "by file name; a file's name makes no split"
    assert opened(write_images(in_tmp / "one", {"images/1.png": 1, "images/2.png": 2})).classes is None


def test_split_folders_give_splits(opened, in_tmp):
    files = {"train/cat/1.png": 1, "train/dog/2.png": 2, "Val/dog/3.png": 3, "test/cat/4.png": 4}
    source = opened(write_images(in_tmp / "pets", files))
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        "train": [0, 1],
        "validation": [1],
        "test": [0],
    }
    flat = opened(write_images(in_tmp / "flat", {"train/1.png": 1, "test/2.png": 2}))
    assert flat.classes is None and values_of(flat.splits["test"]) == [2]


def test_linked_folders_are_followed_and_loops_are_not(opened, in_tmp):
    elsewhere = write_images(in_tmp / "elsewhere", {"1.png": 1})
    folder = write_images(in_tmp / "pets", {"dog/2.png": 2})
    (folder / "cat").symlink_to(elsewhere)
    (folder / "dog" / "loop").symlink_to(folder)
    assert values_of(opened(folder).splits["train"]) == [1, 2]


def test_links_out_of_the_folder_are_followed_and_said(opened, in_tmp, refused):
    elsewhere = write_images(in_tmp / "elsewhere", {"1.png": 1, "2.png": 2})
    folder = write_images(in_tmp / "pets", {"dog/3.png": 3})
    (folder / "cat").symlink_to(elsewhere)
    (folder / "dog" / "again.png").symlink_to("3.png")
    assert opened(folder).notes == ("symbolic links that lead out of the folder are followed: 1, the first: cat",)
    (folder / "dog" / "far.png").symlink_to(elsewhere / "2.png")
    source = opened(folder)
    assert "are followed: 2," in source.notes[0] and values_of(source.splits["train"]) == [1, 2, 3, 3, 2]
    (folder / "all").symlink_to("/")
    assert f"{folder}/all: a symbolic link to /, in which the source itself lies" in refused(folder)


def test_ambiguous_folders_are_refused(opened, in_tmp, refused):
    mixed = write_images(in_tmp / "mixed", {"test/1.png": 1, "cat/1.png": 1})
    assert "mixes split folders (test) with others (cat)" in refused(mixed)
    stray = write_images(in_tmp / "stray", {"cat/1.png": 1, "dog/1.png": 1, "3.png": 1})
    assert "others do not (3.png)" in refused(stray)
    assert opened(stray, use_labels=False).splits["train"].count == 3


def counts(source) -> dict[str, list[str]]:
    """The classes of each split's images, by name."""
    return {
        name: None if split.labels is None else [source.classes[label] for label in split.labels]
        for name, split in source.splits.items()
    }


def test_a_folder_around_everything_is_skipped(opened, in_tmp):
    classes = {"cat/1.png": 1, "dog/2.png": 2}
    one = write_images(in_tmp / "one", {f"my_photos/{file}": value for file, value in classes.items()})
    two = write_images(in_tmp / "two", {f"a/b/{file}": value for file, value in classes.items()})
    for folder in (one, two):
        assert counts(opened(folder)) == {"train": ["cat", "dog"]}
    splits = {"train/cat/1.png": 1, "train/dog/2.png": 2, "test/dog/3.png": 3}
    archive = write_images(in_tmp / "splits", {f"archive/{file}": value for file, value in splits.items()})
    assert counts(opened(archive)) == {"train": ["cat", "dog"], "test": ["dog"]}
    called = write_images(in_tmp / "called", {f"photos_test/{file}": value for file, value in classes.items()})
    assert counts(opened(called)) == {"train": ["cat", "dog"]}, "one folder alone is no split by a part of its name"


def test_folders_inside_splits_that_stand_alone_are_skipped(opened, in_tmp):
    same = {"train/images/cat/1.png": 1, "train/images/dog/2.png": 2, "test/images/cat/3.png": 3}
    assert counts(opened(write_images(in_tmp / "same", same))) == {"train": ["cat", "dog"], "test": ["cat"]}
    own = {"train/train/cat/1.png": 1, "train/train/dog/2.png": 2, "test/test/dog/3.png": 3}
    assert counts(opened(write_images(in_tmp / "own", own))) == {"train": ["cat", "dog"], "test": ["dog"]}
    flat = {"train/train/1.png": 1, "train/train/2.png": 2, "test/test/3.png": 3}
    assert counts(opened(write_images(in_tmp / "flat", flat))) == {"train": None, "test": None}
    single = {"train/cat/1.png": 1, "train/dog/2.png": 2, "test/dog/3.png": 3, "val/fox/4.png": 4}
    assert counts(opened(write_images(in_tmp / "single", single))) == {
        "train": ["cat", "dog"],
        "test": ["dog"],
        "validation": ["fox"],
    }, "the only folder of a split may be a class"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("training_set", "train"),
        ("my-train.2020", "train"),
        ("VALID", "validation"),
        ("val 1", "validation"),
        ("dev", "validation"),
        ("test_set", "test"),
        ("testing", "test"),
        ("eval", "test"),
        ("constraint", None),
        ("trainers", None),
        ("latest", None),
        ("train_test", None),
        ("cat", None),
    ],
)
def test_the_words_that_datasets_knows_name_splits(name, split):
    assert split_of(name) == split
    from datasets.data_files import SPLIT_KEYWORDS

    from stage0_images.splits import SPLIT_WORDS

    assert {name: sorted(words) for name, words in SPLIT_WORDS.items()} == {
        str(split): sorted(words) for split, words in SPLIT_KEYWORDS.items()
    }


def test_the_plain_name_of_a_split_is_preferred():
    assert choose_splits(["train_extra", "train", "valid", "val"], "x") == {"train": "train", "validation": "valid"}
    assert choose_splits(["training_set", "test_set"], "x") == {"train": "training_set", "test": "test_set"}


def test_split_folders_may_have_prefixes_and_suffixes(opened, in_tmp, refused):
    files = {"training_set/cat/1.png": 1, "training_set/dog/2.png": 2, "test_set/cat/3.png": 3}
    source = opened(write_images(in_tmp / "sets", files))
    assert counts(source) == {"train": ["cat", "dog"], "test": ["cat"]}
    assert source.splits["train"].name == "training_set"
    toys = opened(write_images(in_tmp / "toys", {"toy train/1.png": 1, "car/2.png": 2}))
    assert counts(toys) == {"train": ["car", "toy train"]}, "a class may be called so"
    message = refused(write_images(in_tmp / "parts", {"train_1/1.png": 1, "train_2/2.png": 2}))
    assert "train_1, train_2" in message and "below a folder train" in message
    message = refused(write_images(in_tmp / "more", {**files, "single_prediction/4.png": 4}))
    assert "mixes split folders (test_set, training_set) with others (single_prediction)" in message
    message = refused(write_images(in_tmp / "twice", {"train_1/1.png": 1, "train_2/2.png": 2, "test/3.png": 3}))
    assert "several splits for train (train_1, train_2)" in message


def test_split_folders_inside_other_folders_are_refused(opened, in_tmp, refused):
    inverted = {"cat/train/1.png": 1, "cat/test/2.png": 2, "dog/train/3.png": 3, "dog/test/4.png": 4}
    message = refused(write_images(in_tmp / "inverted", inverted))
    assert "cat/test" in message and "outermost" in message
    beside = {"archive/train/1.png": 1, "archive/test/2.png": 2, "preview.png": 3}
    assert "archive/test, archive/train" in refused(write_images(in_tmp / "beside", beside))
    one = write_images(in_tmp / "one", {"cat/train/1.png": 1, "dog/2.png": 2})
    assert counts(opened(one)) == {"train": ["cat", "dog"]}, "one such folder is no division"


def test_a_split_without_class_folders_beside_classes_is_left_aside(opened, in_tmp):
    files = {"train/cat/1.png": 1, "train/dog/2.png": 2, "test/3.png": 3, "val/4.png": 4}
    folder = write_images(in_tmp / "pets", files)
    source = opened(folder)
    assert counts(source) == {"train": ["cat", "dog"]}
    assert source.unused == ("val (no labels)", "test (no labels)")
    assert counts(opened(folder, use_labels=False)) == {"train": None, "validation": None, "test": None}


def test_a_class_of_the_test_split_alone_is_a_class(opened, in_tmp):
    files = {"train/cat/1.png": 1, "train/fox/2.png": 2, "test/cat/3.png": 3, "test/owl/4.png": 4}
    source = opened(write_images(in_tmp / "pets", files))
    assert source.classes == ("cat", "fox", "owl")
    assert counts(source) == {"train": ["cat", "fox"], "test": ["cat", "owl"]}


def test_a_class_whose_training_folder_is_empty_is_a_class_without_training_images(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"train/cat/1.png": 1, "train/dog/2.png": 2, "test/fox/3.png": 3})
    (folder / "train" / "fox").mkdir()
    source = opened(folder)
    assert source.classes == ("cat", "dog", "fox")
    assert counts(source) == {"train": ["cat", "dog"], "test": ["fox"]}


def test_folders_of_the_system_are_left_aside_and_counted(opened, in_tmp):
    names = ["@eaDir", "$RECYCLE.BIN", "cat/@eaDir", "__MACOSX"]
    folder = write_images(
        in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2} | {f"{name}/thumb.png": 9 for name in names}
    )
    source = opened(folder)
    assert counts(source) == {"train": ["cat", "dog"]}
    assert sorted(one.file for one in source.aside) == sorted(names)
    assert {one.kind for one in source.aside} == {
        f"{name} (system folder)" for name in ("@eaDir", "$RECYCLE.BIN", "__MACOSX")
    }


def test_other_files_are_counted_by_their_endings(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"1.png": 1, "2.png": 2})
    for name in ("1.HEIC", "2.heic", "more.zip", "note", "note.txt"):
        (folder / name).write_bytes(b"P3 is how a text may begin")
    aside = {one.file: one.kind for one in opened(folder).aside}
    assert aside == {
        "1.HEIC": ".heic",
        "2.heic": ".heic",
        "more.zip": ".zip",
        "note": "without an ending",
        "note.txt": ".txt",
    }


def test_an_archive_beside_images_is_left_aside(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"1.png": 1, "2.png": 2})
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("3.png", png(3))
    source = opened(folder)
    assert [(one.file, one.kind) for one in source.aside] == [("more.zip", ".zip")]
    assert sorted(values_of(source.splits["train"])) == [1, 2]


def test_images_are_known_by_their_contents(opened, in_tmp):
    folder = in_tmp / "scraped"
    folder.mkdir()
    for name, value in {"1": 1, "2.jpg_large": 2, "3.HEIC": 3}.items():
        (folder / name).write_bytes(png(value))
    source = opened(folder)
    assert values_of(source.splits["train"]) == [1, 2, 3] and source.aside == ()


def test_an_archive_alone_that_is_no_zip_is_to_be_unpacked(in_tmp, refused):
    for ending in ("rar", "tar.gz", "7z"):
        folder = in_tmp / ending
        folder.mkdir()
        (folder / f"photos.{ending}").write_bytes(b"PK")
        message = refused(folder)
        assert f"photos.{ending} while it is packed; unpack it" in message


def test_names_that_are_not_utf8_are_read_and_shown_by_escapes(opened, in_tmp):
    for name in (b"caf\xe9", b"dog"):
        folder = os.fsencode(in_tmp / "pets") + b"/" + name
        os.makedirs(folder)
        with open(folder + b"/\xff.png", "wb") as file:
            file.write(png(7))
    source = opened(in_tmp / "pets")
    assert source.classes == ("caf\\xe9", "dog")
    assert [image.file for image in source.splits["train"].fetch(np.arange(2))] == [
        "caf\\xe9/\\xff.png",
        "dog/\\xff.png",
    ]
    assert values_of(source.splits["train"]) == [7, 7]


def test_folders_without_images_are_refused(in_tmp, refused):
    (in_tmp / "empty" / "sub").mkdir(parents=True)
    assert "is an empty folder" in refused(in_tmp / "empty")
    (in_tmp / "texts").mkdir()
    (in_tmp / "texts" / "a.txt").write_text("a")
    assert "no image" in refused(in_tmp / "texts")
