"""Labels in metadata files beside images: which are used, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_sources import values_of, write_images


def described(folder: Path, text: str, name: str = "metadata.csv", count: int = 6) -> Path:
    """Images 1.png, 2.png, ... and a metadata file."""
    write_images(folder, {f"{i}.png": i for i in range(1, count + 1)})
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_metadata_gives_labels_and_images_that_it_does_not_name_are_counted(opened, in_tmp):
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(1, 5))
    source = opened(described(in_tmp / "csv", "file_name,label\n" + rows))
    assert source.classes == ("cat", "dog") and source.splits["train"].labels.tolist() == [0, 1, 0, 1]
    assert values_of(source.splits["train"]) == [1, 2, 3, 4]
    assert [(one.file, one.kind) for one in source.aside] == [
        ("5.png", "not named in metadata"),
        ("6.png", "not named in metadata"),
    ]
    lines = "".join(f'{{"file_name": "{i}.png", "class": {i % 3}}}\n' for i in range(1, 7))
    source = opened(described(in_tmp / "jsonl", lines, "metadata.jsonl"))
    assert source.classes == ("0", "1", "2") and source.aside == ()


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("image,photographer\n1.png,me\n", "metadata.csv", "it has no column file_name"),
        ("file_name,photographer\n1.png,me\n", "metadata.csv", "it has no column label or class"),
        ("", "metadata.csv", "it cannot be read (empty file (0 bytes))"),
        ("file_name,label\n", "metadata.csv", "it has no row"),
        ("", "metadata.jsonl", "empty file"),
        ("[1, 2]\n", "metadata.jsonl", "JSON"),
        ("{", "metadata.jsonl", "JSON"),
    ],
)
def test_metadata_without_labels_is_named_and_class_folders_still_count(opened, in_tmp, text, name, reason):
    folder = write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2})
    (folder / name).write_text(text, encoding="utf-8")
    source = opened(folder)
    assert source.classes == ("cat", "dog") and values_of(source.splits["train"]) == [1, 2]
    assert source.notes[0].startswith(f"{name}: not used, since ") and reason in source.notes[0] and source.aside == ()
    flat = opened(described(in_tmp / "flat", text, name))
    assert flat.splits["train"].count == 6 and flat.classes is None and reason in flat.notes[0]
    assert opened(folder, use_labels=False).notes == ()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((0.5, 1.5, 0.5), "column 'label' is of type double; classes are whole numbers, texts or truth values"),
        (("a", "b", "c"), "column 'label' has 3 different values in 3 rows, too many to be taken for classes"),
    ],
)
def test_class_folders_count_if_the_labels_in_metadata_cannot_be_classes(opened, in_tmp, labels, reason):
    images = {"cat/1.png": 1, "cat/2.png": 2, "dog/3.png": 3, "dog/4.png": 4}
    folder = write_images(in_tmp / "pets", images)
    rows = "".join(f"{name},{label}\n" for name, label in zip(images, labels, strict=False))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows, encoding="utf-8")
    source = opened(folder)
    assert source.classes == ("cat", "dog") and source.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert values_of(source.splits["train"]) == [1, 2, 3, 4] and source.aside == ()
    (note,) = source.notes
    assert note.startswith(f"metadata.csv: not used, since {reason}")
    (folder / "metadata.csv").write_text("file_name,class\n" + rows, encoding="utf-8")
    source = opened(folder, label_column="label")  # as a preset names it
    assert source.classes == ("cat", "dog") and "column 'class' " in source.notes[0]
    assert "it has no column 'label' (its columns: class)" in source.notes[0]
    assert source.notes[1] == "data.label_column: 'label' is not used: images are files, not table rows"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("label\ncat/1.png,0.5", "column 'label' is of type double"),
        ("animal\ncat/1.png,cat", "it has no column label or class"),
        ("label\n7.png,cat", "no image that it names is there"),
    ],
)
def test_a_refusal_says_why_metadata_does_not_give_the_labels(in_tmp, refused, rows, reason):
    folder = write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2, "5.png": 5})
    (folder / "metadata.csv").write_text(f"file_name,{rows}\n")
    message = refused(folder)
    assert "some images lie in class folders (cat, dog) and others do not (5.png)" in message
    assert f"; metadata.csv: not used, since {reason}" in message


def test_labels_in_metadata_that_cannot_be_classes_are_named_where_folders_give_none_either(opened, in_tmp, refused):
    folder = described(in_tmp / "flat", "file_name,label\n1.png,0.5\n2.png,1.5\n")
    source = opened(folder)
    assert source.classes is None and source.notes[0].startswith("no labels: column 'label' is of type double")
    assert values_of(source.splits["train"]) == [1, 2] and len(source.aside) == 4
    write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2})
    (in_tmp / "pets" / "metadata.csv").write_text("file_name,label\ncat/1.png,0.5\ndog/2.png,1.5\n")
    assert "'label' is of type double; expected class labels" in refused(in_tmp / "pets", label_column="label")


def test_a_damaged_metadata_file_beside_a_good_one_is_refused(in_tmp, refused):
    folder = described(in_tmp / "pets", "file_name,label\n1.png,a\n2.png,b\n")
    write_images(folder / "more", {"7.png": 7})
    (folder / "more" / "metadata.csv").write_text("x\n1\n")
    message = refused(folder)
    assert "more/metadata.csv" in message and "no column file_name" in message and "metadata.csv" in message


def test_named_metadata_columns_may_be_labels(opened, in_tmp):
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(1, 7))
    folder = described(in_tmp / "csv", "file_name,animal\n" + rows)
    assert "data.label_column names another" in opened(folder).notes[0]
    assert opened(folder, label_column="animal").classes == ("cat", "dog")


def test_labels_in_metadata_may_have_another_name_than_in_a_preset(opened, in_tmp, refused):
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'},{i % 3}\n" for i in range(1, 7))
    source = opened(described(in_tmp / "one", "file_name,class,weight\n" + rows), label_column="label")
    assert source.classes == ("cat", "dog") and source.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert source.notes == ("data.label_column: no column 'label'; 'class', the only label column, is used",)
    two = described(in_tmp / "two", "file_name,class,classes\n" + rows)
    assert "no column 'label'; the columns are image, class, classes" in refused(two, label_column="label")


def test_metadata_is_read_in_each_split(opened, in_tmp, refused):
    for split, count in (("train", 4), ("test", 2)):
        rows = "".join(f"{i}.png,{i % 2}\n" for i in range(1, count + 1))
        described(in_tmp / "pets" / split, "file_name,label\n" + rows, count=count)
    source = opened(in_tmp / "pets")
    assert source.classes == ("0", "1") and source.splits["test"].labels.tolist() == [1, 0]
    assert [image.file for image in source.splits["test"].fetch(np.arange(2))] == ["test/1.png", "test/2.png"]


def test_metadata_that_names_an_image_twice_or_none_that_is_there(opened, in_tmp, refused):
    twice = described(in_tmp / "twice", "file_name,label\n1.png,a\n2.png,b\n1.png,b\n")
    assert "metadata names 1.png twice" in refused(twice)
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(1, 9))
    source = opened(described(in_tmp / "gone", "file_name,label\n" + rows))
    assert source.notes == ("metadata names 2 files that are not there: 7.png, 8.png",)
    assert source.splits["train"].count == 6


def test_metadata_rows_that_name_no_image_are_counted(opened, in_tmp):
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(1, 7))
    source = opened(described(in_tmp / "some", f"file_name,label\n{rows},cat\n,dog\n"))
    assert source.notes == ("rows of metadata without a file_name: 2",)
    assert source.splits["train"].count == 6 and source.classes == ("cat", "dog")
    source = opened(described(in_tmp / "none", "file_name,label\n,cat\n"))
    assert source.notes == ("metadata.csv: not used, since it has no row with a file_name",)
    lines = "".join(f'{{"file_name": "{i}.png", "label": {i % 2}}}\n' for i in range(1, 7))
    source = opened(described(in_tmp / "lines", lines + '{"label": 1}\n', "metadata.jsonl"))
    assert source.notes == ("rows of metadata without a file_name: 1",) and source.classes == ("0", "1")
    empty = lines + 2 * '{"file_name": "", "label": 1}\n'
    assert opened(described(in_tmp / "empty", empty, "metadata.jsonl")).notes == (
        "rows of metadata without a file_name: 2",
    )


def test_paths_in_metadata_may_have_the_separators_of_windows(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"a/1.png": 1, "a/2.png": 2, "a\\1.png": 3, "b/4.png": 4})
    rows = "a\\1.png,cat\na\\2.png,dog\n.\\b\\4.png,dog\na/1.png,cat\n"
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    source = opened(folder)
    assert source.notes == () and source.aside == () and source.classes == ("cat", "dog")
    assert values_of(source.splits["train"]) == [1, 2, 3, 4]
    assert source.splits["train"].labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("label_column", [None, "label"])
def test_metadata_that_names_no_image_is_not_used(opened, in_tmp, label_column):
    note = "metadata.csv: not used, since no image that it names is there"
    write_images(in_tmp / "pets", {"cat/1.png": 1, "dog/2.png": 2})
    (in_tmp / "pets" / "notes.txt").write_text("about the images")
    for folder, classes in (("pets", ("cat", "dog")), ("flat", None)):
        described(in_tmp / folder, "file_name,label\n7.png,a\nnotes.txt,b\n", count=0 if classes else 2)
        source = opened(in_tmp / folder, label_column=label_column)
        assert source.notes[0] == note and source.classes == classes
        assert values_of(source.splits["train"]) == [1, 2]


def test_metadata_that_names_no_training_image_leaves_the_classes_to_the_folders(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"train/cat/1.png": 1, "train/dog/2.png": 2, "test/cat/3.png": 3})
    (folder / "metadata.csv").write_text("file_name,label\ntest/cat/3.png,a\n")
    source = opened(folder)
    assert source.notes == ("metadata.csv: not used, since column 'label' has no value for any training image",)
    assert source.classes == ("cat", "dog") and values_of(source.splits["train"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "metadata.csv",
            "file_name,label\n1.png,Käse\n2.png,b\n".encode("cp1252"),
            "its text is not UTF-8; save it as UTF-8",
        ),
        ("metadata.jsonl", '{"file_name": "1.png", "label": "Käse"}\n'.encode("cp1252"), "its text is not UTF-8"),
        ("metadata.csv", b"file_name,label,label\n1.png,a,a\n2.png,b,b\n", "it has the column label more than once"),
        ("metadata.csv", b"file_name,file_name,label\n1.png,1.png,a\n", "it has the column file_name more than once"),
    ],
)
def test_metadata_that_cannot_be_read_is_left_out_with_the_reason(opened, in_tmp, name, content, reason):
    folder = write_images(in_tmp / "pets", {"1.png": 1, "2.png": 2})
    (folder / name).write_bytes(content)
    source = opened(folder)
    assert source.classes is None and values_of(source.splits["train"]) == [1, 2]
    assert source.notes[0].startswith(f"{name}: not used, since {reason}")


def test_a_character_of_metadata_may_lie_across_the_pieces_that_are_checked(opened, in_tmp, monkeypatch):
    monkeypatch.setattr("stage0_images.metadata.PIECE", 1)
    folder = described(in_tmp / "pets", "file_name,label\n1.png,Käse\n2.png,b\n3.png,b\n4.png,Käse\n", count=4)
    assert opened(folder).classes == ("Käse", "b")


def test_metadata_may_name_images_in_other_folders(opened, in_tmp):
    folder = write_images(in_tmp / "pets", {"images/1.png": 1, "images/2.png": 2})
    (folder / "labels").mkdir()
    (folder / "labels" / "metadata.csv").write_text("file_name,label\n../images/1.png,a\n..\\images\\2.png,b\n")
    source = opened(folder, label_column="label")
    assert source.notes == () and source.classes == ("a", "b") and values_of(source.splits["train"]) == [1, 2]


def test_a_test_split_of_which_metadata_names_no_image_is_left_aside(opened, in_tmp):
    images = {f"{split}/{name}/1.png": 1 for split in ("train", "test") for name in ("cat", "dog")}
    folder = write_images(in_tmp / "pets", images | {"train/cat/2.png": 2, "train/dog/2.png": 2})
    rows = "".join(f"{name}/{number}.png,{name}\n" for name in ("cat", "dog") for number in (1, 2))
    (folder / "train" / "metadata.csv").write_text("file_name,label\n" + rows)
    source = opened(folder)
    assert list(source.splits) == ["train"] and source.splits["train"].count == 4
    assert [one.file for one in source.aside] == ["test/cat/1.png", "test/dog/1.png"]
