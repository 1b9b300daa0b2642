"""Labels as people give them: names with spaces and other letters, names that are numbers, numbers, "each", none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sampling.labels import Classes
from tessera.errors import UserError

NAMES = ("ankle boot", "sneaker", "bag")
FASHION = Classes(3, NAMES, (0, 1, 2))
NUMBERED = Classes(4, ("2", "7", "10", "x"), (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        (["sneaker", "bag"], 2, [1, 2]),
        ("sneaker", 3, [1, 1, 1]),
        (2, 2, [2, 2]),
        (np.int64(2), 2, [2, 2]),
        (["bag", 0], 2, [2, 0]),
        (("bag", np.int32(1), 3), 3, [2, 1, 3]),
        (np.array(["bag", "ankle boot"]), 2, [2, 0]),
        (np.array(["bag", 1], dtype=object), 2, [2, 1]),
        (torch.tensor([2, 0]), 2, [2, 0]),
        ("each", 5, [0, 1, 2, 0, 1]),
    ],
)
def test_a_label_is_a_name_or_a_number(labels, count, expected):
    found = FASHION.numbers(labels, count)
    assert found.tolist() == expected and found.dtype == torch.int64
    assert FASHION.numbers(None, count) is None


def test_fewer_labels_are_taken_in_turn_where_they_may_be():
    assert FASHION.numbers(["sneaker", "bag"], 4, repeat=True).tolist() == [1, 2, 1, 2]
    assert FASHION.numbers([0, 1], 4, start=1, repeat=True).tolist() == [0, 1, 0, 1]
    for count, repeat in ((3, True), (4, False), (1, True)):
        with pytest.raises(UserError, match=f"labels: expected {count} whole numbers or names of classes"):
            FASHION.numbers(["sneaker", "bag"], count, repeat=repeat)
    with pytest.raises(UserError, match=r"expected 2 whole numbers .* of shape"):
        FASHION.numbers([], 2, repeat=True)


def test_each_class_in_turn_goes_by_the_place_in_the_run_however_far():
    assert FASHION.numbers("each", 4, start=2).tolist() == [2, 0, 1, 2]
    assert FASHION.numbers("each", 2, start=2**70).tolist() == [2**70 % 3, (2**70 + 1) % 3]


@pytest.mark.parametrize("name", ["猫", "ankle boot", " x ", "Ünder", "a/b", "no\nline", "😀 cat", "-1", "3.5", "each"])
def test_any_text_may_be_a_name(name):
    classes = Classes(2, ("other", name), (0, 1))
    assert classes.numbers([name, "other"], 2).tolist() == [1, 0]
    assert classes.word(name) == (1, None)


def test_an_accent_may_be_written_in_either_way():
    composed, combined = "caf\u00e9", "cafe\u0301"
    for known, asked in ((composed, combined), (combined, composed)):
        assert Classes(1, (known,), (0,)).number(asked) == 0


def test_capitals_matter_only_where_names_differ_in_them_alone():
    classes = Classes(4, ("Ankle boot", "Bag", "bag", "None"), (0, 1, 2, 3))
    assert classes.numbers(["ankle BOOT", "bag", "Bag"], 3).tolist() == [0, 2, 1]
    assert classes.word("ankle boot") == (0, None)
    assert classes.word("none") == (4, None) and classes.word("None") == (3, None)
    with pytest.raises(UserError, match="no class is called 'BAG'"):
        classes.number("BAG")


def test_names_that_look_alike_stay_apart():
    classes = Classes(4, ("2", "²", " 2", "x"), (0, 1, 2, 3))
    assert classes.numbers(["²", " 2", "2"], 3).tolist() == [1, 2, 0]


def test_in_python_a_text_is_a_name_and_a_number_is_a_number():
    assert NUMBERED.numbers(["7", 2, "2"], 3).tolist() == [1, 2, 0]
    with pytest.raises(UserError, match="no class is called '3'"):
        NUMBERED.numbers(["3"], 1)


def test_on_the_command_line_a_name_comes_before_a_number():
    assert NUMBERED.word("7") == (1, None)  # no class has the number 7
    assert NUMBERED.word("3") == (3, None)  # no class has this name
    number, note = NUMBERED.word("2")
    assert number == 0 and note == "--class 2: the class of this name (number 0), not class number 2"
    assert Classes(3, ("0", "1", "2"), (0, 1, 2)).word("2") == (2, None)  # name and number are those of one class
    assert FASHION.word("2") == (2, None) and FASHION.word("none") == (3, None)
    assert Classes(1, ("none",), (0,)).word("none") == (0, None)


@pytest.mark.parametrize("text", ["3", "10", "-1", "99999999999999999999", "1.0", "²", "١"])
def test_a_number_without_a_class_is_refused(text):
    with pytest.raises(UserError, match="--class: no class is called"):
        FASHION.word(text)


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(UserError) as caught:
        FASHION.numbers(["Sneeker"], 1)
    expected = "labels: no class is called 'Sneeker'; did you mean 'sneaker'? there are 'ankle boot', 'sneaker', 'bag'"
    assert str(caught.value) == expected
    letters = Classes(2, ("letter A", "letter B"), (0, 1))
    with pytest.raises(UserError, match="no class is called 'b'; did you mean 'letter B'"):
        letters.word("b")
    many = Classes(100, tuple(f"bird {i}" for i in range(100)), tuple(range(100)))
    with pytest.raises(UserError, match="'bird 19' and 80 more") as caught:
        many.word("tyre\n")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_without_names_only_numbers_are_labels():
    unnamed = Classes(3, None, (0, 1, 2))
    assert unnamed.word("2") == (2, None) and unnamed.numbers([1], 1).tolist() == [1]
    for ask in (lambda: unnamed.word("bag"), lambda: unnamed.numbers(["bag"], 1)):
        with pytest.raises(UserError, match="'bag' is a name, but this prior does not say"):
            ask()


def test_a_class_that_training_never_showed_is_left_out_and_refused():
    classes = Classes(4, ("a", "b", "c", "d"), (0, 3))
    assert classes.numbers("each", 5, start=1).tolist() == [3, 0, 3, 0, 3]
    classes.require_trained(torch.tensor([0, 3, 4]))  # 4 is the null label
    classes.require_trained(None)
    with pytest.raises(UserError, match="no training image shows class 2 \\('c'\\)"):
        classes.require_trained(torch.tensor([0, 2]))


def test_labels_of_a_prior_without_classes_are_refused():
    classes = Classes(0, None, ())
    assert classes.numbers("each", 3) is None
    for labels in ("bag", 0, [0]):
        with pytest.raises(UserError, match="trained without labels"):
            classes.numbers(labels, 1)
    with pytest.raises(UserError, match="--class: this prior was trained without labels"):
        classes.word("0")
