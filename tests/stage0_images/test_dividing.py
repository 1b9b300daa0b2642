"""Splits that a source lacks are cut from its training images: exact, stratified, and by the seed alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from stage0_images.columns import Aside, Source, SourceSplit
from stage0_images.dividing import divide, shares
from tessera.errors import UserError


def source_of(labels: list[int] | None = None, **counts: int) -> Source:
    """A source without images; `labels`: of the training split."""
    splits = {name: SourceSplit(name, n, None, lambda rows: []) for name, n in counts.items()}
    if labels is not None:
        splits["train"] = SourceSplit("train", len(labels), np.array(labels), lambda rows: [])
    return Source(splits, None)


def sizes(source: Source, data) -> dict[str, int]:
    return {name: len(part.rows) for name, part in divide(source, data).items()}


@pytest.fixture
def data(params):
    """`data(test=0.2, validation=0.1, seed=0)`: the section `data`."""

    def make(test: float = 0.2, validation: float = 0.1, seed: int = 0):
        return params(
            {"data.test_fraction": test, "data.validation_fraction": validation, "data.split_seed": seed}
        ).data

    return make


def test_no_split_is_ever_empty(data):
    assert sizes(source_of(train=3), data(0.01, 0.01)) == {"train": 1, "validation": 1, "test": 1}
    with pytest.raises(UserError, match="has no image"):
        divide(source_of(train=9, test=0), data())
    with pytest.raises(UserError, match="the split train would be empty: of 4 training images, 2 would go to test"):
        divide(source_of(train=4), data(0.5, 0.5))


@pytest.mark.parametrize(
    ("splits", "line"),
    [
        ({"train": 1}, "three images are needed, one for each of train, test, validation; it has 1 to divide"),
        ({"train": 2}, "three images are needed"),
        ({"train": 1, "test": 5}, "two images are needed, one for each of train, validation"),
    ],
)
def test_too_few_images_say_how_many_are_needed(data, splits, line):
    with pytest.raises(UserError, match=line):
        divide(source_of(**splits), data())


def test_too_few_images_name_what_lies_beside_them(data):
    source = replace(source_of(train=1), aside=(Aside("photos.zip", ".zip", "no image"),))
    with pytest.raises(UserError, match=r"it has 1 to divide, so add images \(not read: photos.zip\)"):
        divide(source, data())


def test_each_class_gives_the_same_fraction(data):
    """100, 50 and 30 images: a fifth of each is tested, and a tenth of all, shared as the rest is, validates."""
    labels = [0] * 100 + [1] * 50 + [2] * 30
    parts = divide(source_of(labels), data())
    counts = {name: np.bincount(np.array(labels)[part.rows], minlength=3).tolist() for name, part in parts.items()}
    assert counts == {"test": [20, 10, 6], "validation": [10, 5, 3], "train": [70, 35, 21]}
    rows = np.concatenate([part.rows for part in parts.values()])
    assert sorted(rows.tolist()) == list(range(180))


@pytest.mark.parametrize("size", [1, 2, 7, 36, 99, 179])
@pytest.mark.parametrize("counts", [[100, 50, 30], [178, 1, 1], [60, 60, 60], [0, 180], [180]])
def test_shares_are_within_one_image_of_the_exact_ones(counts, size):
    taken = shares(np.array(counts), size)
    assert taken.sum() == size and (taken <= counts).all() and (taken >= 0).all()
    spare = size <= sum(counts) - np.count_nonzero(counts)  # every class can keep an image
    for count, share in zip(counts, taken.tolist(), strict=True):
        if count > 1:
            assert abs(Fraction(size * count, sum(counts)) - share) < 2
        assert not spare or count == 0 or share < count


def test_the_largest_remainders_get_the_images_that_are_left():
    """Of 10 images classes of 5, 3 and 2 should give 1.5, 0.9 and 0.6 of three: 1, 0, 0, and then 0.9 and 0.6."""
    assert shares(np.array([5, 3, 2]), 3).tolist() == [1, 1, 1]
    assert shares(np.array([4, 4, 4]), 2).tolist() == [1, 1, 0], "equal ones in the order of the classes"
    assert shares(np.array([1, 1, 8]), 5).tolist() == [0, 0, 5], "a class keeps its last image"
    assert shares(np.array([1, 1]), 1).tolist() == [1, 0], "unless there is no other"


def test_the_division_depends_on_the_seed_alone(data):
    labels = [i % 3 for i in range(90)]

    def rows(seed: int) -> dict[str, list[int]]:
        return {name: part.rows.tolist() for name, part in divide(source_of(labels), data(seed=seed)).items()}

    assert rows(0) == rows(0) and rows(0) != rows(1)


def test_images_without_labels_are_divided_as_one_class(data):
    one, none = divide(source_of([0] * 50), data()), divide(source_of(train=50), data())
    assert {name: part.rows.tolist() for name, part in one.items()} == {
        name: part.rows.tolist() for name, part in none.items()
    }
