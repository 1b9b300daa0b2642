"""The products and the cache of decoding against plain ones in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stage2_prior.priors.products import BLOCK, KVCache, Product

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
    for result, wanted in ((plain(x), expected), (plain.onto(x, other), expected + other.double())):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), wanted, **TOLERANCES[dtype])
    for approximate in ("none", "tanh"):
        bent = Product(weight, bias, rows, gelu=approximate)(x).double()
        torch.testing.assert_close(bent, F.gelu(expected, approximate=approximate), **TOLERANCES[dtype])


@torch.inference_mode()
def test_a_product_made_for_one_row_takes_as_many_as_it_has_outputs():
    weight, x = torch.randn(7, 5), torch.randn(7, 5)
    torch.testing.assert_close(Product(weight, None, 1)(x), x @ weight.mT)


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 2), (torch.bfloat16, 1), (torch.bfloat16, 64)])
@torch.inference_mode()
def test_products_are_laid_out_where_the_machine_can_and_plain_where_it_is_told_not_to(dtype, rows, monkeypatch):
    weight, x = torch.randn(24, 40).to(dtype), torch.randn(rows, 40).to(dtype)
    if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert Product(weight, None, rows).packed
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        plain = Product(weight, None, rows)
    assert not plain.packed
    torch.testing.assert_close(plain(x), F.linear(x, weight))
    torch.testing.assert_close(plain.onto(x, x[:, :24]), x[:, :24] + F.linear(x, weight), **TOLERANCES[dtype])


@torch.inference_mode()
def test_large_weights_take_no_temporaries_of_their_size():
    weight, x = torch.randn(2048, 1100), torch.randn(1, 1100)
    assert not Product(weight, None, 1).single
    torch.testing.assert_close(Product(weight, None, 1)(x), F.linear(x, weight))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("start", [0, 1, BLOCK + 3])
@torch.inference_mode()
def test_a_cache_answers_as_attention_over_all_that_was_put_in(dtype, batch, start):
    torch.manual_seed(0)
    count, heads, width = 2 * BLOCK + 5, 2, 8
    q, k, v = torch.randn(3, batch, heads, count, width).to(dtype)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    cache = KVCache((batch, heads, count, width), q)
    if start:
        cache.extend(k[:, :, :start], v[:, :, :start])
    for i in range(start, count):
        cache.extend(k[:, :, i : i + 1], v[:, :, i : i + 1])
        found = cache.ask(q[:, :, i : i + 1])
        assert found.dtype == dtype
        tolerances = {"rtol": 0.02, "atol": 0.03} if dtype == torch.bfloat16 else TOLERANCES[dtype]
        torch.testing.assert_close(found.double(), expected[:, :, i].flatten(1), **tolerances)
