"""Columns and labels of tables: which column is taken, and what is said when none can be."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from image_sources import png, saved, table, values_of, write_images


def test_columns_are_found_by_type_or_named(opened, in_tmp, refused):
    fine = ([0, 1], ["a", "b"])
    coarse = ([1, 1], ["x", "y"])
    folder = saved(in_tmp / "two", train=table([1, 2], "img", fine=fine, coarse=coarse))
    message = refused(folder)
    assert message.startswith("data.label_column: several columns may be labels") and "fine, coarse" in message
    assert opened(folder, label_column="coarse").classes == ("x", "y")
    assert opened(folder, use_labels=False).classes is None
    assert "no column 'gone'" in refused(folder, label_column="gone")
    two = table([1, 2], "left").add_column("right", [{"bytes": png(3), "path": None}] * 2)
    two = two.cast_column("right", datasets.Image())
    pair = saved(in_tmp / "pair", train=two)
    assert "several columns of image type (left, right)" in refused(pair)
    assert values_of(opened(pair, image_column="right").splits["train"]) == [3, 3]


def test_strings_and_integers_named_as_labels_become_classes_in_sorted_order(opened, in_tmp, refused):
    folder = saved(
        in_tmp / "raw",
        train=table([1, 2, 3], number=[10, 2, 10], word=["b", "a", "b"], weight=[0.5, 1.0, 2.0]),
        test=table([4], number=[7], word=["c"], weight=[1.0]),
    )
    assert opened(folder).classes is None, "only class labels are taken without being named"
    numbers = opened(folder, label_column="number")
    assert numbers.classes == ("2", "7", "10")
    assert numbers.splits["train"].labels.tolist() == [2, 0, 2] and numbers.splits["test"].labels.tolist() == [1]
    words = opened(folder, label_column="word")
    assert words.classes == ("a", "b", "c") and words.splits["train"].labels.tolist() == [1, 0, 1]
    assert "expected class labels, integers, strings or truth values" in refused(folder, label_column="weight")


def test_a_test_split_whose_labels_are_secret_is_left_aside_unless_labels_are(opened, in_tmp):
    names = ["a", "b"]
    hidden = saved(
        in_tmp / "hidden", train=table([1, 2], label=([0, 1], names)), test=table([3, 4], label=([-1, -1], names))
    )
    source = opened(hidden)
    assert set(source.splits) == {"train"} and source.unused == ("test (no labels)",)
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert opened(hidden, use_labels=False).splits["test"].labels is None
    absent = opened(saved(in_tmp / "absent", train=table([1, 2], label=([0, 1], names)), validation=table([3])))
    assert set(absent.splits) == {"train"} and absent.unused == ("validation (no labels)",)


def test_unlabelled_images_among_labelled_ones_are_refused(in_tmp, refused):
    names = ["a", "b"]
    some = saved(
        in_tmp / "some", train=table([1, 2], label=([0, 1], names)), test=table([3, 4], label=([1, -1], names))
    )
    message = refused(some)
    assert "1 of 2 images of the split test have no label" in message and "data.use_labels: false" in message
    null = saved(in_tmp / "null", train=table([1, 2], word=["a", None]))
    assert "1 of 2 images" in refused(null, label_column="word")
    other = saved(in_tmp / "other", train=table([1], label=([0], names)), test=table([2], label=([0], ["b", "a"])))
    assert "other classes" in refused(other)


def test_a_column_that_is_not_there_falls_to_the_only_one_and_this_is_said(opened, in_tmp, refused):
    """A preset names the columns of its own dataset."""
    folder = saved(in_tmp / "pets", train=table([1, 2], "picture", animal=([0, 1], ["cat", "dog"])))
    source = opened(folder, image_column="img", label_column="label")
    assert values_of(source.splits["train"]) == [1, 2] and source.classes == ("cat", "dog")
    assert source.notes == (
        "data.image_column: no column 'img'; 'picture', the only one of image type, is used",
        "data.label_column: no column 'label'; 'animal', the only label column, is used",
    )
    assert opened(folder, image_column="picture", label_column="animal").notes == ()
    plain = write_images(in_tmp / "plain", {"cat/1.png": 1, "dog/2.png": 2})
    source = opened(plain, image_column="img", label_column="label")
    assert source.classes == ("cat", "dog")
    assert [note.split(":")[0] for note in source.notes] == ["data.image_column", "data.label_column"]
    bare = saved(in_tmp / "bare", train=table([1, 2], word=["a", "b"]))
    assert "no column 'label'" in refused(bare, label_column="label")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([5, 15, 5, 15], ("5", "15")),
        (["dog", "cat", "cat", "dog"], ("cat", "dog")),
        ([True, False, False, True], ("False", "True")),
    ],
)
@pytest.mark.parametrize("name", ["label", "Class"])
def test_a_column_called_label_or_class_is_used_if_it_can_only_be_labels(opened, in_tmp, name, values, classes):
    saved(in_tmp / "pets", train=table([1, 2, 3, 4], **{name: values}))
    (in_tmp / "parquet").mkdir()
    table([1, 2, 3, 4], **{name: values}).to_parquet(in_tmp / "parquet" / "train.parquet")
    for folder in ("pets", "parquet"):
        source = opened(in_tmp / folder)
        assert source.classes == classes and source.notes == ()
        expected = sorted(set(values))
        assert source.splits["train"].labels.tolist() == [expected.index(value) for value in values]
        assert opened(in_tmp / folder, use_labels=False).classes is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 1.0, 0.0, 1.0], "is of type float"),
        ([[0], [1], [0], [1]], "is of type List"),
        (["a", "b", "c", "b"], "has 3 different values in 4 rows"),
        ([7, 7, 7, 7], "has the same value for every image"),
    ],
)
def test_a_column_called_label_that_cannot_serve_is_named_with_the_reason(opened, in_tmp, values, reason):
    source = opened(saved(in_tmp / "pets", train=table([1, 2, 3, 4], label=values)))
    assert source.classes is None and len(source.notes) == 1
    assert source.notes[0].startswith("no labels: column 'label' ") and reason in source.notes[0]


def test_other_columns_that_could_be_labels_are_named(opened, in_tmp):
    columns = {"animal": ["a", "b", "a", "b"], "weight": [0.5, 1.0, 2.0, 0.5], "number": [1, 2, 3, 4]}
    source = opened(saved(in_tmp / "pets", train=table([1, 2, 3, 4], **columns)))
    assert source.classes is None
    assert source.notes == ("no labels, but columns that could be labels: animal; data.label_column names one",)
    assert opened(in_tmp / "pets", label_column="animal").classes == ("a", "b")


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
        ("5.png", "images not named in metadata"),
        ("6.png", "images not named in metadata"),
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
