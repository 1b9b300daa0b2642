"""Entropies of soft assignments against their definition in float64, with blocks and with processes."""

from __future__ import annotations

import pytest
import torch

from stage1_vqvae.quantizers import entropy
from stage1_vqvae.quantizers.entropy import assignment_entropy


def definition(vectors, codebook, scale, bias):
    p = (scale * (vectors @ codebook.t() + (0 if bias is None else bias))).softmax(1)
    mean = p.mean(0)
    return -(p * p.log()).sum(1).mean(), -(mean * mean.log()).sum()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block", [1, 40, 2**22])
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, with_bias: bool, block: int) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(entropy, "BLOCK", block)
    inputs = [torch.randn(30, 4).double(), torch.randn(12, 4).double(), torch.randn(12).double()]
    found, expected = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    weights = (0.7, -1.3)
    for leaves, function in ((found, assignment_entropy), (expected, definition)):
        sure, even = function(leaves[0], leaves[1], 1.7, leaves[2] if with_bias else None)
        (weights[0] * sure + weights[1] * even).backward()
    values = assignment_entropy(*inputs[:2], 1.7, inputs[2] if with_bias else None)
    torch.testing.assert_close(values, definition(*inputs[:2], 1.7, inputs[2] if with_bias else None))
    for one, other in zip(found[: 2 + with_bias], expected[: 2 + with_bias], strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_code_that_no_vector_wants_is_no_nan() -> None:
    vectors, codebook = torch.tensor([[100.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    sure, even = assignment_entropy(vectors, codebook, 10.0)
    (sure - even).backward()
    assert sure.item() == 0 and even.item() == pytest.approx(0, abs=1e-30) and vectors.grad.isfinite().all()


def test_the_gradient_of_two_processes_averages_to_that_of_the_whole_batch(monkeypatch) -> None:
    """As under DDP, each process has half of the batch, and the mean assignment is summed over both."""
    torch.manual_seed(0)
    vectors, codebook = torch.randn(20, 3).double(), torch.randn(5, 3).double()
    halves = vectors.split(10)
    means = [((half @ codebook.t()).softmax(1)).mean(0) for half in halves]
    whole = codebook.clone().requires_grad_()
    expected = assignment_entropy(vectors, whole, 1.0)[1]
    expected.backward()
    gradients = []
    monkeypatch.setattr(entropy, "world", lambda: (0, 2))
    for rank, half in enumerate(halves):
        monkeypatch.setattr(entropy, "sum_over_processes", lambda mean, other=means[1 - rank]: mean.add_(other))
        leaf = codebook.clone().requires_grad_()
        even = assignment_entropy(half, leaf, 1.0)[1]
        assert even.item() == pytest.approx(expected.item())
        even.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, whole.grad)
