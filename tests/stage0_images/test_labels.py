"""Columns and labels of tables: which column is taken, and what is said when none can be."""

from __future__ import annotations

import datasets
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
    columns["__url__"] = ["x.tar", "x.tar", "y.tar", "y.tar"]  # what `datasets` adds to WebDataset
    source = opened(saved(in_tmp / "pets", train=table([1, 2, 3, 4], **columns)))
    assert source.classes is None
    assert source.notes == ("no labels, but columns that could be labels: animal; data.label_column names one",)
    assert opened(in_tmp / "pets", label_column="animal").classes == ("a", "b")
