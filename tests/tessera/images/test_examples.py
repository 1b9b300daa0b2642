"""Which images of a split a picture shows."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.images.examples import spread_over_classes
from tessera.images.prepared import ImageSplit


def split(labels: list[int] | None, count: int = 0) -> ImageSplit:
    count = count if labels is None else len(labels)
    return ImageSplit(np.zeros((count, 1, 2, 2), np.uint8), None if labels is None else np.array(labels, np.int64))


def test_classes_take_turns_and_each_shows_images_from_all_over_it():
    assert spread_over_classes(split([2, 2, 0, 0, 1, 0, 2, 1]), 6).tolist() == [2, 4, 0, 3, 7, 1]
    labels = [0] * 10 + [7] * 9
    assert spread_over_classes(split(labels), 5).tolist() == [0, 10, 3, 14, 6]


def test_a_class_without_further_images_is_skipped_and_one_without_any_is_not_there():
    assert spread_over_classes(split([0, 0, 0, 5]), 4).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize("labels", [[0, 1, 0], None])
def test_a_small_split_is_shown_whole_and_nothing_twice(labels):
    assert sorted(spread_over_classes(split(labels, 3), 32).tolist()) == [0, 1, 2]


def test_of_many_classes_those_shown_are_spread_over_all():
    labels = [label for label in range(100) for _ in range(3)]
    assert spread_over_classes(split(labels), 4).tolist() == [0, 75, 150, 225]


def test_unlabelled_images_are_evenly_spaced():
    assert spread_over_classes(split(None, 10), 4).tolist() == [0, 2, 5, 7]
    assert spread_over_classes(split(None, 0), 4).tolist() == []


def test_sorted_and_shuffled_data_show_every_class_equally_often():
    labels = np.repeat(np.arange(10), 30)
    for order in (np.arange(300), np.random.default_rng(0).permutation(300)):
        shown = labels[order][spread_over_classes(split(labels[order].tolist()), 30)]
        assert np.bincount(shown).tolist() == [3] * 10
