"""Gumbel-softmax against its definition in float64, its schedule, and the distribution of its draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

from stage1_vqvae.quantizers.gumbel import GumbelQuantizer
from stage1_vqvae.quantizers.noise import gumbels

DEFAULTS = {
    "codebook_size": 5,
    "codebook_dim": 3,
    "temperature": 0.9,
    "final_temperature": 0.1,
    "anneal_steps": 10,
    "hard": False,
    "kl_cost": 0.3,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quantizer(**changes: Any) -> GumbelQuantizer:
    return GumbelQuantizer(**{**DEFAULTS, **changes})


def test_values_loss_and_gradients_are_those_of_the_definition() -> None:
    gumbel, seeds = quantizer(), torch.arange(4)
    z, weights = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    mine = z.clone().requires_grad_()
    output = gumbel(mine, seeds)
    ((output.z_q * weights).sum() + output.loss).backward()

    weight, bias, codes = (p.detach().double() for p in (gumbel.logits.weight, gumbel.logits.bias, gumbel.embedding))
    theirs = z.double().requires_grad_()
    logits = theirs @ weight.t() + bias
    y = ((logits + gumbels((4, 2, 5), seeds, z.device)) / 0.9).softmax(-1)
    p = logits.softmax(-1)
    divergence = (p * (p / (1 / 5)).log()).sum(-1).mean()
    torch.testing.assert_close(output.z_q.double(), y @ codes, rtol=1e-5, atol=1e-6)
    assert output.loss.item() == pytest.approx(0.3 * divergence.item(), rel=1e-5)
    (((y @ codes) * weights).sum() + 0.3 * divergence).backward()
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_hard_gives_the_decoder_one_code_and_the_gradient_of_the_weights() -> None:
    soft, hard, seeds = quantizer(), quantizer(hard=True), torch.arange(6)
    hard.load_state_dict(soft.state_dict())
    z = torch.randn(6, 3)
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    outputs = [q(leaf, seeds) for q, leaf in zip((soft, hard), leaves, strict=True)]
    torch.testing.assert_close(outputs[1].z_q, hard.lookup(outputs[1].indices))
    for output in outputs:
        output.z_q.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_the_temperature_falls_by_a_cosine_and_stays() -> None:
    gumbel, seen = quantizer(), []
    for step in range(12):
        gumbel(torch.randn(2, 3), torch.arange(2))
        seen.append(gumbel.update(step, seed=0)["temperature"].item())
    assert seen[4] == pytest.approx(0.5) and seen[9:] == pytest.approx([0.1] * 3)
    assert seen[0] == pytest.approx(0.1 + 0.4 * (1 + math.cos(math.pi / 10)))
    assert gumbel.state_dict()["temperature"] == gumbel.temperature  # a resumed run needs it


def test_draws_follow_the_softmax_of_the_logits_and_evaluation_is_its_mode() -> None:
    gumbel = quantizer().eval()
    z = torch.randn(1, 3)
    p = gumbel.logits(z).detach().double().softmax(-1)[0]
    drawn = gumbel.draw(z.expand(2, 4000, 3), torch.arange(2))
    counts = torch.bincount(drawn.flatten(), minlength=5)
    assert stats.chisquare(counts.numpy(), (p * 8000).numpy()).pvalue > 0.01
    output = gumbel(z)
    assert output.indices.item() == p.argmax() and torch.equal(output.z_q, gumbel.lookup(output.indices))
