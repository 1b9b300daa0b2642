"""SimVQ against vector-quantize-pytorch with the same weights."""

from __future__ import annotations

import pytest
import torch
import vector_quantize_pytorch as oracle

from stage1_vqvae.quantizers.simvq import SimVQ


def pair(estimator: str) -> tuple[SimVQ, oracle.SimVQ]:
    torch.manual_seed(0)
    options = {"codebook_size": 20, "codebook_dim": 4, "commitment_cost": 0.25, "diveq_variance": 0.0}
    mine = SimVQ(gradient_estimator=estimator, **options)
    theirs = oracle.SimVQ(dim=4, codebook_size=20, rotation_trick=estimator == "rotation")
    theirs.frozen_codebook.copy_(mine.frozen)
    theirs.code_transform.load_state_dict(mine.map.state_dict())
    return mine, theirs


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_codes_loss_and_gradients_equal_vector_quantize_pytorch(estimator: str) -> None:
    mine, theirs = pair(estimator)
    z, weights = torch.randn(2, 30, 4), torch.randn(2, 30, 4)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, (code, indices, loss) = mine(a), theirs(b)
    assert torch.equal(output.indices.squeeze(-1), indices)
    torch.testing.assert_close((output.z_q, output.loss), (code, loss))
    ((output.z_q * weights).sum() + output.loss).backward()
    ((code * weights).sum() + loss).backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(mine.map.weight.grad, theirs.code_transform.weight.grad)


def test_every_code_moves_with_a_step_on_one() -> None:
    mine, _ = pair("straight_through")
    before = mine.map(mine.frozen).detach().clone()
    mine(torch.randn(1, 4)).loss.backward()
    with torch.no_grad():
        mine.map.weight -= 0.1 * mine.map.weight.grad
    assert ((mine.map(mine.frozen) - before).norm(dim=1) > 0).all()


def test_diveq_reaches_the_map_without_a_loss() -> None:
    mine, _ = pair("diveq")
    mine(torch.randn(5, 4)).z_q.sum().backward()
    assert mine.map.weight.grad.abs().sum() > 0
