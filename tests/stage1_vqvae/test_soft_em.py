"""Soft EM: which codes are drawn and how they move; evaluation takes the nearest code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from shipped import parameters

from stage1_vqvae.quantizers import soft_em
from stage1_vqvae.quantizers.soft_em import SoftEM

DEFAULTS = parameters(
    "stage1_vqvae.quantizer.soft_em",
    codebook_size=6,
    codebook_dim=3,
    samples=4,
    ema_decay=0.8,
    start="normal",
    kmeans_rounds=3,
    revival_threshold=0.0,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def quantizer(**changes: Any) -> SoftEM:
    return SoftEM(**{**DEFAULTS, **changes})


@pytest.mark.parametrize("block", [1, 2**22])
def test_codes_are_drawn_from_the_softmax_of_minus_the_squared_distance(monkeypatch, block: int) -> None:
    monkeypatch.setattr(soft_em, "BLOCK", block)
    em = quantizer()
    z = torch.randn(1, 3)
    drawn = em._draw(z.expand(3, 3), 2000, torch.arange(3)).flatten()
    expected = (-torch.cdist(z.double(), em.hard.codebook.double()).square()[0]).softmax(0) * len(drawn)
    counts = torch.bincount(drawn, minlength=6)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


def test_codes_far_from_the_origin_have_the_same_chances() -> None:
    em = quantizer(codebook_dim=64)
    z = em.hard.codebook.mean(0).expand(4, 64)
    near = next(em._assignments(z))
    em.hard.codebook += 100
    torch.testing.assert_close(next(em._assignments(z + 100)), near, rtol=5e-3, atol=1e-4)


def test_the_decoder_gets_the_mean_of_the_drawn_codes_and_the_gradient_goes_straight_through() -> None:
    em = quantizer()
    z, seeds = torch.randn(5, 2, 3, requires_grad=True), torch.arange(5)
    output = em(z, seeds)
    drawn = em._draw(z.detach(), 4, seeds)
    mean = em.hard.codebook[drawn].mean(1).view(5, 2, 3)
    torch.testing.assert_close(output.z_q, mean)
    torch.testing.assert_close(output.loss, 0.25 * (z.detach() - mean).square().mean())
    assert torch.equal(output.code, mean) and output.indices.shape == (5, 2, 1)
    weights = torch.randn(5, 2, 3)
    (output.z_q * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


def test_the_ema_takes_averaged_one_hots() -> None:
    em = quantizer()
    z, seeds = torch.randn(7, 3), torch.arange(7)
    before, drawn = em.hard.codebook.clone(), em._draw(z, 4, seeds)
    em(z, seeds)
    em.update(0, seed=0)
    one_hot = torch.nn.functional.one_hot(drawn, 6).double().mean(1)
    count = 0.8 * torch.ones(6).double() + 0.2 * one_hot.sum(0)
    total = 0.8 * before.double() + 0.2 * one_hot.t() @ z.double()
    smoothed = (count + 1e-5) / (count.sum() + 6e-5) * count.sum()
    torch.testing.assert_close(em.hard.ema_count.double(), count, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(em.hard.codebook.double(), total / smoothed[:, None], rtol=1e-5, atol=1e-6)


def test_evaluation_takes_the_nearest_code_and_draw_one_of_the_likely() -> None:
    em = quantizer(codebook_size=50).eval()
    z, seeds = torch.randn(4, 6, 3), torch.arange(4)
    output = em(z)
    nearest = torch.cdist(z.flatten(0, 1), em.hard.codebook).argmin(1)
    assert torch.equal(output.indices.flatten(), nearest) and torch.equal(output.z_q, em.lookup(output.indices))
    drawn = em.draw(z, seeds)
    assert drawn.shape == (4, 6, 1) and not torch.equal(drawn, output.indices)
    assert torch.equal(em.draw(z[2:], seeds[2:]), drawn[2:])


def test_re_estimation_puts_codes_at_the_means_to_which_the_ema_of_drawn_codes_leads() -> None:
    model = quantizer()
    vectors = torch.randn(300, model.dim)
    shares = (-torch.cdist(vectors.double(), model.hard.codebook.double()).square()).softmax(1)
    expected = shares.t() @ vectors.double() / shares.sum(0)[:, None]
    model.re_estimate(lambda: vectors.split(70))
    torch.testing.assert_close(model.hard.codebook.double(), expected, rtol=1e-4, atol=1e-5)
