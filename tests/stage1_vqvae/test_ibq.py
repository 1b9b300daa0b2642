"""Index backpropagation against autograd on its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stage1_vqvae.quantizers import ibq as module
from stage1_vqvae.quantizers.ibq import IBQ

OPTIONS = {
    "codebook_size": 12,
    "codebook_dim": 4,
    "codebook_cost": 0.25,
    "entropy_cost": 0.05,
    "entropy_temperature": 0.3,
}


def definition(z: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z_q, indices and loss, computed with the whole matrix of assignments."""
    logits = z @ codebook.t()
    p, indices = logits.softmax(1), logits.argmax(1)
    hard = F.one_hot(indices, len(codebook)).to(z)
    z_q, code = (hard + p - p.detach()) @ codebook, hard @ codebook
    loss = (z_q - z).square().mean() + (code.detach() - z).square().mean()
    loss = loss + 0.25 * (code - z.detach()).square().mean()
    q = (logits / 0.3).softmax(1)
    return z_q, indices, loss + 0.05 * (torch.special.entr(q).sum(1).mean() - torch.special.entr(q.mean(0)).sum())


@pytest.mark.parametrize("block", [1, 24, 2**22])
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, block: int) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "BLOCK", block)
    ibq = IBQ(**OPTIONS).double()
    z, weights = torch.randn(30, 4).double(), torch.randn(30, 4).double()
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    codebook = ibq.embedding.detach().clone().requires_grad_()
    output = ibq.quantize(mine)
    z_q, indices, loss = definition(theirs, codebook)
    assert torch.equal(output.indices.squeeze(1), indices)
    torch.testing.assert_close((output.z_q, output.loss), (z_q, loss))
    ((output.z_q * weights).sum() + output.loss).backward()
    ((z_q * weights).sum() + loss).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(ibq.embedding.grad, codebook.grad)


def test_codes_that_were_not_chosen_get_a_gradient_too() -> None:
    torch.manual_seed(0)
    ibq = IBQ(**{**OPTIONS, "entropy_cost": 0.0})
    output = ibq(torch.randn(3, 4))
    (output.z_q * torch.randn(3, 4)).sum().backward()
    assert (ibq.embedding.grad.norm(dim=1) > 0).all()


def test_evaluation_is_the_code_with_the_largest_product() -> None:
    torch.manual_seed(0)
    ibq = IBQ(**OPTIONS).eval()
    z = torch.randn(2, 5, 4)
    output = ibq(z)
    assert torch.equal(output.indices.squeeze(-1), (z @ ibq.embedding.t()).argmax(-1))
    assert torch.equal(output.z_q, ibq.lookup(output.indices))
