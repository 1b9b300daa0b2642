"""The products and the cache of decoding against plain ones in float64."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

from stage2_prior.priors.decoding import products
from stage2_prior.priors.decoding.cache import BLOCK, KVCache
from stage2_prior.priors.decoding.products import Product

# What bf16 keeps of sums of tens: 8 bits.
TOLERANCES = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 2e-2, "atol": 0.15},
}
PRECISIONS = [*TOLERANCES]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@torch.inference_mode()
def test_a_product_is_a_linear_layer(dtype, rows, bias, transposed):
    torch.manual_seed(0)
    x, other = torch.randn(rows, 40).to(dtype), torch.randn(rows, 3, 24).to(dtype)[:, 1]
    weight = torch.randn(40, 24).mT.to(dtype) if transposed else torch.randn(24, 40).to(dtype)
    bias = torch.randn(24).to(dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    plain = Product(weight, bias, rows)
    cases = [(plain(x), expected), (plain.onto(x, other), expected + other.double())]
    if rows == 1 and plain.layout == "plain":
        cases += [(plain(x[0]), expected[0]), (plain.onto(x[0], other[0]), expected[0] + other[0].double())]
    for result, wanted in cases:
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), wanted, **TOLERANCES[dtype])
    for approximate in ("none", "tanh"):
        bent = Product(weight, bias, rows, gelu=approximate)(x).double()
        torch.testing.assert_close(bent, F.gelu(expected, approximate=approximate), **TOLERANCES[dtype])


@pytest.mark.parametrize("made_for", [1, 2, 7])
@torch.inference_mode()
def test_a_product_takes_other_numbers_of_rows_than_it_was_made_for(made_for):
    weight, x = torch.randn(7, 5), torch.randn(7, 5)
    product = Product(weight, None, made_for)
    for rows in (1, 3, 7):
        torch.testing.assert_close(product(x[:rows]), x[:rows] @ weight.mT)


@torch.inference_mode()
def test_products_are_laid_out_where_the_machine_can(monkeypatch):
    weight = torch.randn(24, 40)
    assert Product(weight, None, 1).layout == "plain"
    if torch.backends.mkl.is_available():
        assert Product(weight, None, 2).layout == "mkl"
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert Product(weight.bfloat16(), None, 1).layout == "onednn"
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    for dtype in PRECISIONS:
        x, other = torch.randn(3, 40).to(dtype), torch.randn(3, 24).to(dtype)
        plain = Product(weight.to(dtype), None, 3)
        assert plain.layout == "plain"
        expected = F.linear(x, weight.to(dtype))
        torch.testing.assert_close(plain(x), expected)
        torch.testing.assert_close(plain.onto(x, other), expected + other)


@pytest.fixture
def untried():
    """Private operators are tried anew in the test, and again after it."""
    products.works.cache_clear()
    yield
    products.works.cache_clear()


LAID_OUT = {"mkl": torch.float32, "onednn": torch.bfloat16}


@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("fault", ["missing", "wrong"])
@torch.inference_mode()
def test_private_operators_that_are_missing_or_wrong_are_replaced_with_one_line(
    layout, fault, untried, monkeypatch, capsys
):
    weight, x = torch.randn(24, 40).to(LAID_OUT[layout]), torch.randn(3, 40).to(LAID_OUT[layout])
    if Product(weight, None, 3).layout != layout:
        pytest.skip("this machine has no such operators")
    products.works.cache_clear()
    if fault == "missing":
        left = {"_is_mkldnn_bf16_supported": lambda: True}
        monkeypatch.setattr(torch.ops, {"mkl": "mkl", "onednn": "mkldnn"}[layout], types.SimpleNamespace(**left))
    else:
        monkeypatch.setattr(Product, "onto", lambda self, x, other: other)
    for _ in range(2):
        product = Product(weight, None, 3)
        assert product.layout == "plain"
        torch.testing.assert_close(product(x), F.linear(x, weight))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{layout} fails" in said


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3, 5, 17])
@pytest.mark.parametrize("start", [0, 1, BLOCK + 3])
@torch.inference_mode()
def test_a_cache_answers_as_attention_over_all_that_was_put_in(dtype, batch, start):
    torch.manual_seed(0)
    layers, count, heads, width = 2, 2 * BLOCK + 5, 2, 8
    cache = KVCache(layers, (batch, heads, count, width), torch.empty(0, dtype=dtype))
    for _ in range(2):
        sequences = torch.randn(layers, 3, batch, heads, count, width).to(dtype)
        queries, keys, values = sequences.double().unbind(1)
        expected = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        for first, last in [(0, start)] * (start > 0) + [(i, i + 1) for i in range(start, count)]:
            cache.open(last - first)
            for layer, (q, k, v) in enumerate(sequences[..., first:last, :]):
                cache.put(layer, k, v)
                if last > start:
                    found = cache.ask(layer, q)
                    assert found.dtype == dtype
                    tolerances = {"rtol": 0.02, "atol": 0.03} if dtype == torch.bfloat16 else TOLERANCES[dtype]
                    torch.testing.assert_close(found.double(), expected[layer, :, :, first].flatten(1), **tolerances)
        cache.restart()


@pytest.mark.parametrize("amx", [True, False])
def test_few_sequences_are_attended_to_in_one_call(amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    for dtype in PRECISIONS:
        for batch in (1, 4, 5, 16, 17):
            cache = KVCache(1, (batch, 2, 3, 8), torch.empty(0, dtype=dtype))
            few = batch <= 4 or (batch <= 16 and amx and dtype == torch.bfloat16)
            assert cache.by_blocks == (not few)
            assert cache.memory.dtype == (torch.float32 if batch <= 4 and dtype == torch.bfloat16 else dtype)
