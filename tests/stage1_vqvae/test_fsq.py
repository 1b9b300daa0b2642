"""FSQ against vector-quantize-pytorch, and its index against every code."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as oracle

from stage1_vqvae.quantizers.fsq import FSQ

LEVELS = [[8, 5, 5, 5], [3, 4, 7], [8, 8, 8], [5]]
FSQ_SECTION, NAMES = "stage1_vqvae.quantizer.fsq", ("tanh", "sigmoid")


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_indices_and_gradients_equal_vector_quantize_pytorch(levels: list[int]) -> None:
    torch.manual_seed(0)
    fsq, other = FSQ(levels=levels), oracle.FSQ(levels)
    z, weights = torch.randn(2, 60, len(levels)) * 2, torch.randn(2, 60, len(levels))
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, (code, indices) = fsq(mine), other(theirs)
    assert torch.equal(output.z_q, code) and torch.equal(output.indices.squeeze(-1), indices.long())
    (output.z_q * weights).sum().backward()
    (code * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert output.loss.item() == 0 and (fsq.codebook_size, fsq.dim, fsq.depth) == (other.codebook_size, len(levels), 1)


@pytest.mark.parametrize("levels", [[17] * 4, [3, 5, 7], [8, 5]])
def test_with_sigmoid_the_codes_and_gradients_are_those_of_ifsqs_formula(levels: list[int]) -> None:
    """iFSQ's listing for odd counts: round((2 sigmoid(1.6 z) - 1) (L - 1) / 2) / (L // 2); even counts are offset."""
    torch.manual_seed(0)
    fsq, z = FSQ(levels=levels, activation="sigmoid"), torch.randn(300, len(levels)) * 2
    mine, weights = z.clone().requires_grad_(), torch.randn(300, len(levels))
    output = fsq(mine)
    (output.z_q * weights).sum().backward()
    counts = torch.tensor(levels, dtype=torch.float64)
    exact = z.double().requires_grad_()
    bounded = (2 / (1 + torch.exp(-1.6 * exact)) - 1) * (counts - 1) / 2 - torch.where(counts % 2 == 0, 0.5, 0.0)
    assert torch.equal(output.z_q.double(), (bounded.round() / (counts // 2)).float().double())
    ((bounded / (counts // 2)) * weights).sum().backward()
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [8, 9])
def test_with_sigmoid_a_normal_z_uses_inner_values_more_evenly_than_with_tanh(count: int) -> None:
    torch.manual_seed(0)
    z, spread = torch.randn(20000, 1), {}
    for activation in ("tanh", "sigmoid"):
        inner = FSQ(levels=[count], activation=activation)(z).indices.flatten().bincount(minlength=count)[1:-1]
        spread[activation] = (inner.max() / inner.min()).item()  # the outermost values own half a step more or less
    assert spread["sigmoid"] < 1.2 < 1.4 < spread["tanh"]


def test_tanh_is_left_out_of_a_models_configuration_so_that_older_models_load(params) -> None:
    values = {name: params({f"{FSQ_SECTION}.activation": name}).stage1_vqvae.quantizer.fsq.values() for name in NAMES}
    assert values == {"tanh": {"levels": [4, 4, 4]}, "sigmoid": {"levels": [4, 4, 4], "activation": "sigmoid"}}
    z = torch.randn(50, 3)
    old, new = FSQ(**values["tanh"]).eval(), FSQ(levels=[4, 4, 4], activation="tanh").eval()
    assert torch.equal(old(z).z_q, new(z).z_q) and not torch.equal(old(z).z_q, FSQ(**values["sigmoid"]).eval()(z).z_q)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_index_is_its_codes_own(levels: list[int]) -> None:
    fsq = FSQ(levels=levels).eval()
    indices = torch.arange(fsq.codebook_size)[:, None]
    codes = fsq.lookup(indices)
    assert len(codes.unique(dim=0)) == fsq.codebook_size and codes.min() == -1 and codes.max() <= 1
    found = fsq.quantize(codes)
    assert torch.equal(found.indices, indices) and torch.equal(found.z_q, codes)


def test_a_code_is_the_nearest_point_of_the_grid() -> None:
    torch.manual_seed(0)
    fsq = FSQ(levels=[4, 5]).eval()
    target = fsq.to_target(torch.randn(200, 2) * 2)
    grid = fsq.lookup(torch.arange(20)[:, None])
    assert torch.equal(fsq.quantize(target).indices.squeeze(1), torch.cdist(target, grid).argmin(1))


def test_what_lies_beyond_the_grid_or_is_not_finite_gets_a_code() -> None:
    fsq = FSQ(levels=[4, 3]).eval()
    target = torch.tensor([[9.0, -9.0], [float("inf"), float("nan")]])
    assert fsq.quantize(target).indices.squeeze(1).tolist()[0] == 3 + 0 * 4
    assert (fsq.quantize(target).indices < 12).all() and (fsq.quantize(target).indices >= 0).all()


def test_update_reports_the_perplexity_and_forgets_the_batch() -> None:
    fsq = FSQ(levels=[3, 3])
    fsq(torch.tensor([[9.0, 9.0], [-9.0, -9.0]]))
    fsq.discard()
    fsq(torch.tensor([[9.0, 9.0], [-9.0, -9.0], [9.0, 9.0], [-9.0, -9.0]]))
    assert fsq.update(0, seed=0)["perplexity"].item() == pytest.approx(2)
