"""FSQ against vector-quantize-pytorch, and its index against every code."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as oracle

from stage1_vqvae.quantizers.fsq import FSQ

LEVELS = [[8, 5, 5, 5], [3, 4, 7], [8, 8, 8], [5]]


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
