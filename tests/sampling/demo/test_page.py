"""The page of the demo says what the model is."""

from __future__ import annotations

from types import SimpleNamespace

import extras
import pytest

from tessera.codes.layout import CodeLayout, Level


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([(4, 4, 1)], "each made of 16 codes (4x4)"),
        ([(2, 2, 1), (4, 4, 3)], "each made of 52 codes (2x2 + 4x4x3)"),
    ],
)
def test_the_grids_of_the_summary_have_as_many_codes_as_it_says(levels: list[tuple[int, int, int]], said: str) -> None:
    extras.require("gradio")
    from sampling.demo import page

    layout = CodeLayout((3, 16, 16), tuple(Level(*sizes, codebook_size=8) for sizes in levels))
    assert said in page._summary(SimpleNamespace(layout=layout))
