"""The PixelSNAIL's network: what each position sees, what decoding computes, its size."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from stage2_prior.priors.pixelsnail import PixelSNAIL
from stage2_prior.priors.snail import CausalConv, SnailGrid
from tessera.codes.layout import CodeLayout, Level

SIZE = {"channels": 4, "hidden": 4, "kernel_size": 3, "blocks": 1, "residuals": 1, "heads": 0, "dropout": 0.0}


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("strict", [True, False])
def test_a_causal_convolution_is_a_masked_one(kernel_size, strict):
    torch.manual_seed(0)
    conv = CausalConv(3, 5, kernel_size, strict=strict).double()
    p = kernel_size // 2
    # One kernel over rows k-1 above to p below, zero where a later position would be read.
    whole = torch.zeros(5, 3, 2 * kernel_size - 1, kernel_size, dtype=torch.float64)
    whole[:, :, : kernel_size - 1] = conv.above.weight.data
    whole[:, :, kernel_size - 1, : p + (not strict)] = conv.beside.weight.data[:, :, 0]
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, whole, conv.above.bias, padding=(kernel_size - 1, p))
    torch.testing.assert_close(conv(x), expected)


def test_attention_sees_all_earlier_positions_and_no_other(seen_from):
    torch.manual_seed(0)
    level = Level(4, 5, 1, 3)
    grid = SnailGrid(level, **SIZE | {"heads": 2}).double()
    order = torch.arange(20).view(4, 5)
    for row in range(4):
        for column in range(5):
            assert torch.equal(seen_from(grid, row, column), order < row * 5 + column), (row, column)


def test_without_attention_a_network_sees_its_kernels(seen_from):
    torch.manual_seed(0)
    seen = seen_from(SnailGrid(Level(9, 9, 1, 3), **SIZE).double(), 8, 4)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    # Three convolutions: each goes up to two rows up and then a column either side, or stays and goes one to the left.
    expected[2:6, 1:8] = True
    expected[6, 1:7] = True
    expected[7, 1:6] = True
    expected[8, 1:4] = True
    assert torch.equal(seen, expected)


def test_decoding_reads_the_rows_above_once_a_row(monkeypatch):
    layout = CodeLayout((1, 8, 8), (Level(3, 5, 2, 4),))
    size = {"layers": 1, "width": 4, "channels": 1.0, "hidden": 1.0, "kernel_size": 3, "residuals": 1, "heads": 0}
    prior = PixelSNAIL(layout, 0, **size, dropout=0.0, conditioning_blocks=0).eval()
    calls = Counter()
    begin_row, one = CausalConv.begin_row, CausalConv.one

    def counted_row(self, state, onto=None):
        calls["rows"] += 1
        return begin_row(self, state, onto)

    def counted_one(self, x, state):
        calls["ones"] += 1
        return one(self, x, state)

    monkeypatch.setattr(CausalConv, "begin_row", counted_row)
    monkeypatch.setattr(CausalConv, "one", counted_one)
    state = prior.start_decoding(torch.zeros(2, dtype=torch.int64))
    token = None
    for _ in range(layout.num_tokens):
        token = prior.next_logits(state, token).argmax(-1)
    convolutions = 3
    assert calls == {"rows": convolutions * 3, "ones": convolutions * 15}


def test_rosinalitys_size_has_its_parameters():
    """256 channels, 4 blocks of 4: 85 million there, of which masks leave 22 of 25 taps a kernel; here 23."""
    layout = CodeLayout((3, 256, 256), (Level(32, 32, 1, 512),))
    with torch.device("meta"):
        prior = PixelSNAIL(
            layout,
            0,
            layers=4,
            width=256,
            channels=1.0,
            hidden=1.0,
            kernel_size=5,
            residuals=4,
            heads=8,
            conditioning_blocks=0,
            dropout=0.1,
        )
    kernels = 16 * (256 * 256 + 256 * 512) * 23
    total = sum(p.numel() for p in prior.parameters())
    assert sum(p.numel() for n, p in prior.named_parameters() if n.endswith(("above.weight", "beside.weight"))) == (
        kernels + 256 * 256 * 22
    )
    assert 79e6 < total < 85e6
