"""CodeLayout: grids and sequence are two views of the same codes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tessera.artifacts.bounded import BUFFERS, ONE_TENSOR
from tessera.codes.figures import codebook_figures
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

ONE = CodeLayout((1, 8, 8), (Level(4, 4, 1, 64),))
TWO = CodeLayout((3, 16, 24), (Level(2, 3, 1, 10), Level(4, 6, 1, 300)))
DEEP = CodeLayout((3, 8, 4), (Level(1, 2, 3, 7), Level(2, 4, 2, 5), Level(1, 1, 1, 2)))
LAYOUTS = [ONE, TWO, DEEP]


def random_codes(layout: CodeLayout, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(level.codebook_size, (count, level.height, level.width, level.depth), generator=generator)
        for level in layout.levels
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flatten_and_unflatten_undo_each_other(layout):
    codes = random_codes(layout, 5)
    tokens = layout.flatten(codes)
    assert tokens.shape == (5, layout.num_tokens) and tokens.dtype == torch.int64
    assert all(torch.equal(a, b) for a, b in zip(codes, layout.unflatten(tokens), strict=True))
    assert layout.flatten(layout.unflatten(tokens[:0])).shape == (0, layout.num_tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sequence_runs_level_row_column_depth(layout):
    order = [
        (index, row, column, depth)
        for index, level in enumerate(layout.levels)
        for row in range(level.height)
        for column in range(level.width)
        for depth in range(level.depth)
    ]
    assert [tuple(place) for place in layout.places.tolist()] == order
    codes, tokens = random_codes(layout, 1), layout.flatten(random_codes(layout, 1))
    assert [codes[i][0, r, c, d].item() for i, r, c, d in order] == tokens[0].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_token_may_take_the_values_of_its_level(layout):
    assert layout.allowed.shape == (layout.num_tokens, layout.vocabulary)
    for token, (index, *_) in enumerate(layout.places.tolist()):
        size = layout.levels[index].codebook_size
        assert layout.codebook_sizes[token] == size
        assert layout.allowed[token].tolist() == [value < size for value in range(layout.vocabulary)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_cut_the_sequence_into_levels(layout):
    parts = [list(range(layout.num_tokens))[part] for part in layout.slices()]
    assert [len(part) for part in parts] == [level.tokens for level in layout.levels]
    assert [token for part in parts for token in part] == list(range(layout.num_tokens))


def test_uniform_nats_is_the_sum_of_log_k():
    assert ONE.uniform_nats == pytest.approx(16 * math.log(64))
    assert TWO.uniform_nats == pytest.approx(6 * math.log(10) + 24 * math.log(300))
    assert DEEP.uniform_nats == pytest.approx(6 * math.log(7) + 16 * math.log(5) + math.log(2))
    assert (ONE.dimensions, TWO.dimensions) == (64, 3 * 16 * 24)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, "uint8"), (2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_codes_take_the_smallest_type_that_holds_them(size, dtype):
    layout = CodeLayout((1, 2, 2), (Level(1, 1, 1, 1), Level(1, 1, 1, size)))
    assert layout.dtype == np.dtype(dtype)
    assert layout.dtype.type(size - 1) == size - 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_survives_json(layout):
    assert CodeLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), ()), ((1, 8, 8), (Level(0, 1, 1, 2),)), ((8, 8), (Level(1, 1, 1, 2),))]
)
def test_an_impossible_layout_is_refused(shape, levels):
    with pytest.raises(ValueError, match="positive sizes"):
        CodeLayout(shape, levels)


def test_codes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected code grids"):
        TWO.flatten(random_codes(ONE, 2))
    with pytest.raises(ValueError, match=r"\(B, 16\)"):
        ONE.unflatten(torch.zeros(2, 15, dtype=torch.int64))


def test_codes_are_counted_a_level_and_a_depth() -> None:
    layout = CodeLayout((1, 8, 8), (Level(1, 1, 2, 4), Level(1, 2, 1, 6)))
    tokens = torch.tensor([[0, 3, 5, 5], [0, 3, 1, 5], [3, 3, 1, 5], [0, 1, 2, 2]])
    counts = layout.counts(layout.unflatten(tokens))
    assert [c.tolist() for c in counts] == [[[3, 0, 0, 1], [0, 1, 0, 3]], [[0, 2, 2, 0, 0, 4]]]


def test_codebook_figures_are_the_mean_over_depths() -> None:
    uneven = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert codebook_figures(torch.tensor([[3, 0, 0, 1]])) == pytest.approx(
        {"codebook_usage": 0.5, "perplexity": uneven}
    )
    assert codebook_figures(torch.tensor([[3, 0, 0, 1], [2, 2, 2, 2]])) == pytest.approx(
        {"codebook_usage": 0.75, "perplexity": (uneven + 4) / 2}
    )


def test_images_of_many_tokens_of_a_large_codebook_have_a_layout_and_no_table():
    """A prior over sub-tokens needs no table, and a table that is made can be loaded again."""
    layout = CodeLayout((3, 768, 768), (Level(96, 96, 1, 2**18),))
    assert CodeLayout.from_json(layout.to_json()) == layout
    with pytest.raises(UserError, match=r"images of 3 x 768 x 768 values have 9,216 tokens, and with 262,144 codes"):
        _ = layout.allowed
    assert ONE_TENSOR < BUFFERS


def test_more_tokens_or_codes_than_any_model_has_are_refused_in_one_line():
    for levels, words in (
        ((Level(2**12, 2**12, 1, 2),), "16,777,216 tokens are too large"),
        ((Level(2, 2, 1, 2**24 + 1),), "a codebook of 16,777,217 codes is too large"),
        ((Level(2, 2, 2, 8, (8, 2**40)),), "codes is too large"),
    ):
        with pytest.raises(UserError, match=words):
            CodeLayout((1, 8, 8), levels)
