"""Codes changed by hand: places, other codes, and the frame around them."""

from __future__ import annotations

import numpy as np
import pytest

from sampling.demo import codes
from sampling.demo.codes import Place
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

LAYOUT = CodeLayout((1, 8, 16), (Level(2, 4, 1, 5), Level(4, 8, 2, 7, sizes=(7, 3))))


def test_a_click_points_to_the_code_beneath_it_on_each_level():
    assert codes.place_at(LAYOUT, 0, 0.99, 0.49) == Place(0, 0, 3)
    assert codes.place_at(LAYOUT, 1, 0.5, 0.76) == Place(1, 3, 4)
    assert codes.place_at(LAYOUT, 1, 1.0, -0.1) == Place(1, 0, 7)  # the rim


def test_another_code_stands_in_its_place_and_nowhere_else():
    tokens = np.zeros(LAYOUT.num_tokens, dtype=np.int64)
    for place, code in ((Place(0, 1, 2), 4), (Place(1, 3, 5, 1), 2), (Place(1, 0, 0, 0), 6)):
        changed = codes.with_code(LAYOUT, tokens, place, code)
        assert codes.code_at(LAYOUT, changed, place) == code and codes.changes(tokens, changed) == 1
    assert not tokens.any(), "the tokens that were given stay as they are"


@pytest.mark.parametrize(
    ("place", "code", "message"),
    [
        (Place(2, 0, 0), 0, "level: expected a number from 1 to 2, got 3"),
        (Place(0, 2, 0), 0, "row: expected a number from 1 to 2, got 3"),
        (Place(0, 0, -1), 0, "column: expected a number from 1 to 4, got 0"),
        (Place(0, 0, 0, 1), 0, "depth: expected a number from 1 to 1, got 2"),
        (Place(0, 0, 0), 5, "code: expected a number from 0 to 4, got 5"),
        (Place(1, 0, 0, 1), 3, "code: expected a number from 0 to 2, got 3"),
        (Place(0, 0, 0), -1, "code: expected a number from 0 to 4, got -1"),
    ],
)
def test_places_and_codes_that_do_not_exist_are_refused(place, code, message):
    with pytest.raises(UserError, match=message):
        codes.with_code(LAYOUT, np.zeros(LAYOUT.num_tokens, dtype=np.int64), place, code)


def test_a_frame_is_around_the_part_that_a_code_stands_for():
    picture = np.zeros((80, 160, 3), dtype=np.uint8)
    framed = (codes.outlined(picture, LAYOUT, Place(0, 1, 2)) == codes.FRAME).all(-1)
    assert framed[40, 80:120].all() and framed[79, 80:120].all() and framed[40:, 80].all() and framed[40:, 119].all()
    assert framed.sum() == 2 * 40 + 2 * 38 and not picture.any()
