"""Codes that never occur are counted by codebook, whichever levels and depths share it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.usage import codebooks, expected_share, measured
from tessera.codes.layout import CodeLayout, Level

QUANTIZER = "stage1_vqvae.quantizer"


class Tokens:
    """A split of codes."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def rows(self, rows: np.ndarray) -> torch.Tensor:
        return self.tokens[torch.as_tensor(rows)]


def layout(*levels: tuple[int, int, int]) -> CodeLayout:
    return CodeLayout((1, 8, 8), tuple(Level(*sizes, codebook_size=8) for sizes in levels))


def usage(params, codes: CodeLayout, grids: list[list[list[int]]], changes: dict[str, object]):
    """The usage of images, each given as the codes of its levels."""
    tokens = torch.tensor([[code for level in image for code in level] for image in grids])
    return measured(Tokens(tokens), np.arange(len(grids)), codes, params(changes).stage1_vqvae.model())


SCALES = {"stage1_vqvae.scales.sides": [1, 4], "stage2_prior.name": "pixelcnn"}


def test_one_codebook_is_counted_as_it_is(params):
    found = usage(params, layout((2, 2, 1)), [[[0, 1, 1, 1]], [[2, 2, 2, 2]]], {})
    assert found.share == 3 / 8 and found.where == ""
    assert found.expected == pytest.approx(1 - (7 / 8) ** 8)


def test_of_scales_only_the_finest_is_judged(params):
    codes, grids = layout((1, 1, 1), (2, 2, 1)), [[[0], [0, 1, 2, 3]], [[0], [4, 5, 6, 7]]]
    own = usage(params, codes, grids, SCALES)
    assert (own.share, own.where) == (1.0, " of the finest scale")
    assert own.expected == pytest.approx(1 - (7 / 8) ** 8)


def test_levels_that_share_a_codebook_are_counted_together(params):
    codes, grids = layout((1, 1, 1), (2, 2, 1)), [[[0], [4, 5, 5, 5]], [[1], [6, 6, 6, 6]]]
    shared = usage(params, codes, grids, {**SCALES, f"{QUANTIZER}.shared_by_levels": True})
    assert (shared.share, shared.where) == (5 / 8, "")
    assert shared.expected == pytest.approx(1 - (7 / 8) ** 10)


@pytest.mark.parametrize(("share", "expected"), [(False, (2 / 8 + 3 / 8) / 2), (True, 5 / 8)])
def test_depths_that_share_a_codebook_are_counted_together(params, share, expected):
    changes = {f"{QUANTIZER}.name": "residual", f"{QUANTIZER}.residual.depth": 2}
    found = usage(
        params,
        layout((1, 2, 2)),
        [[[0, 4, 1, 5]], [[0, 6, 0, 6]]],
        {**changes, f"{QUANTIZER}.residual.share_codebook": share},
    )
    assert found.share == expected
    assert found.expected == pytest.approx(1 - (7 / 8) ** (8 if share else 4))


@pytest.mark.parametrize(
    ("outer", "inner", "books"),
    [
        (False, False, [[0], [1], [2], [3]]),
        (True, False, [[0, 2], [1, 3]]),
        (False, True, [[0, 1], [2, 3]]),
        (True, True, [[0, 1, 2, 3]]),
    ],
)
def test_residuals_in_groups_share_as_each_of_them_says(params, outer, inner, books):
    residual = {"depth": 2, "share_codebook": inner, "quantizer": {"name": "vq"}}
    group = {"groups": 2, "share_codebook": outer, "quantizer": {"name": "residual", "residual": residual}}
    made = params({f"{QUANTIZER}.name": "grouped", f"{QUANTIZER}.grouped": group}).stage1_vqvae.model()
    found = codebooks(layout((2, 2, 4)), made)
    assert found == [[(0, depth) for depth in book] for book in books]


def test_the_expected_share_is_that_of_draws():
    codes, random = layout((2, 2, 1)), np.random.default_rng(0)
    shares = [len(np.unique(random.integers(0, 8, 3 * 4))) / 8 for _ in range(4000)]
    assert expected_share(codes, [[(0, 0)]], 3) == pytest.approx(np.mean(shares), abs=0.01)
