"""LFQ and BSQ against vector-quantize-pytorch and brute force over all codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vector_quantize_pytorch as oracle
from largest_tensor import LargestTensor

from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.sections import PACKAGE
from tessera.parameters.parts import class_of

DEFAULTS = {
    "bits": 5,
    "commitment_cost": 0.25,
    "entropy_cost": 0.1,
    "entropy_temperature": 0.5,
    "diversity": 1.5,
    "entropy_group_bits": 5,
}


def binary(name: str, **changes: Any) -> torch.nn.Module:
    return class_of(PACKAGE, name, Quantizer)(**{**DEFAULTS, **changes})


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_codes_loss_and_gradients_equal_vector_quantize_pytorch(name: str) -> None:
    torch.manual_seed(0)
    options = {"commitment_loss_weight": 0.25, "entropy_loss_weight": 0.1, "diversity_gamma": 1.5}
    mine, theirs = binary(name), oracle.LFQ(dim=5, spherical=name == "bsq", **options)
    z, weights = torch.randn(4, 20, 5), torch.randn(4, 20, 5)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, (code, indices, loss) = mine(a), theirs(b, inv_temperature=1 / 0.5)
    torch.testing.assert_close(output.z_q, code)
    assert torch.equal(output.indices.squeeze(-1), indices.long())
    torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=1e-4)  # the oracle clamps logarithms at 1e-5
    ((output.z_q * weights).sum() + 50 * output.loss).backward()
    ((code * weights).sum() + 50 * loss).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
@pytest.mark.parametrize("group", [1, 2, 4, 9])
def test_entropies_are_those_of_brute_force_within_groups(name: str, group: int) -> None:
    """Each vector's entropy is that over all 2^5 codes; the entropy of the mean is a sum over groups of bits."""
    torch.manual_seed(0)
    quantizer = binary(name, entropy_group_bits=group).double()
    target = quantizer.to_target(torch.randn(40, 5).double())
    codes = quantizer.lookup(torch.arange(32)[:, None]).double()
    p = (-torch.cdist(target, codes).square() / 0.5).softmax(1)
    even = torch.zeros(()).double()
    for first in range(0, 5, group):
        _, label = codes[:, first : first + group].unique(dim=0, return_inverse=True)
        mean = torch.zeros(label.max() + 1).double().index_add_(0, label, p.mean(0))
        even += torch.special.entr(mean).sum()
    found = quantizer.entropies(target)
    torch.testing.assert_close(found, (torch.special.entr(p).sum(1).mean(), even), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
@pytest.mark.parametrize("bits", [1, 5, 12])
def test_every_index_is_its_codes_own(name: str, bits: int) -> None:
    quantizer = binary(name, bits=bits).eval()
    indices = torch.arange(2**bits)[:, None]
    codes = quantizer.lookup(indices)
    assert len(codes.unique(dim=0)) == 2**bits
    assert torch.equal(quantizer.quantize(codes).indices, indices)
    norm = 1.0 if name == "bsq" else bits**0.5
    torch.testing.assert_close(codes.norm(dim=1), torch.full((2**bits,), norm))


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_2_to_the_18_codes_need_no_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    quantizer = binary(name, bits=18, entropy_group_bits=9)
    sizes = [tensor.numel() for tensor in quantizer.state_dict().values()]
    sizes += [tensor.numel() for tensor in quantizer.buffers()]
    assert max(sizes) <= 18
    indices = torch.randint(2**18, (500, 1))
    assert torch.equal(quantizer.eval().quantize(quantizer.lookup(indices)).indices, indices)
    with LargestTensor() as watched:
        output = quantizer.train()(torch.randn(10, 18, requires_grad=True))
        output.loss.backward()
    assert 0 < watched.largest <= 10 * 2**9
