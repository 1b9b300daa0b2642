"""The gated PixelCNN: what each position sees, and what decoding costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.gated import GatedGrid, GatedLayer
from tessera.codes.layout import CodeLayout, Level


def earlier(level: Level, row: int, column: int) -> torch.Tensor:
    order = torch.arange(level.height * level.width).view(level.height, level.width)
    return order < row * level.width + column


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_deep_network_sees_all_earlier_positions_and_no_other(kernel_size, seen_from):
    level = Level(4, 5, 1, 3)
    grid = GatedGrid(level, layers=5, channels=4, kernel_size=kernel_size, dropout=0.0).double()
    for row in range(4):
        for column in range(5):
            assert torch.equal(seen_from(grid, row, column), earlier(level, row, column)), (row, column)


def test_one_layer_sees_its_kernel_without_a_blind_spot(seen_from):
    level = Level(5, 7, 1, 3)
    grid = GatedGrid(level, layers=1, channels=4, kernel_size=3, dropout=0.0).double()
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:3, 2:5] = True  # two rows above, a column either side
    expected[3, 1:3] = True  # two columns to the left
    assert torch.equal(seen_from(grid, 3, 3), expected)


def test_decoding_runs_each_layer_once_a_token_and_once_a_row(make_stirred, monkeypatch):
    layout = CodeLayout((1, 8, 8), (Level(2, 3, 1, 4), Level(4, 5, 2, 3)))
    prior = make_stirred("pixelcnn", layout, 0)
    calls, sizes = Counter(), set()
    for owner, name in ((GatedLayer, "vertical"), (Product, "onto")):
        original = getattr(owner, name)

        def counted(self, first, second, name=name, original=original):
            calls[name] += 1
            sizes.add((name, tuple(first.shape)))
            return original(self, first, second)

        monkeypatch.setattr(owner, name, counted)
    state = prior.start_decoding(torch.zeros(2, dtype=torch.int64))
    last = None
    for _ in range(layout.num_tokens):
        last = prior.next_logits(state, last).argmax(-1)
    layers = 2
    assert calls == {"vertical": layers * (2 + 4), "onto": 2 * layers * (6 + 20)}
    assert sizes == {
        ("vertical", (2, 6, 2, 3)),
        ("vertical", (2, 6, 2, 5)),
        ("onto", (2, 2 * 6)),  # two columns
        ("onto", (2, 6)),
    }


def test_channels_last_weights_give_the_same_logits(layout, make_stirred, make_tokens):
    prior, tokens = make_stirred("pixelcnn", layout, 2), make_tokens(layout, 3)
    before = prior.logits(tokens, None)
    torch.testing.assert_close(prior.to(memory_format=torch.channels_last).logits(tokens, None), before)
