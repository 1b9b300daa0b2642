"""The random streams of images, and decoding with a prior of plain tables."""

from __future__ import annotations

import math

import pytest
import torch
from recomputed_tokens import streams

from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage2_prior.priors.autoregressive import Autoregressive
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError


class Table(Autoregressive):
    """Two tokens of two values; the second is more likely to repeat the first. Notes the sizes of its batches."""

    def __init__(self, num_classes: int, constant: float | None = None) -> None:
        super().__init__(CodeLayout((1, 1, 2), (Level(1, 2, 1, 2),)), num_classes, 0)
        self.rows, self.constant = [], constant

    def begin(self, labels, coarser):
        self.rows.append(len(labels))
        return labels

    def advance(self, labels, position, tokens):
        if self.constant is not None:
            return torch.full((len(labels), 2), self.constant)
        p = torch.tensor([0.3, 0.7]).expand(len(labels), 2)
        if tokens is not None:
            p = torch.where(tokens[:, None] == torch.arange(2), 0.9, 0.1)
        return p.double().log() + labels[:, None] * torch.tensor([0.0, 0.5])


def test_frequencies_of_sequences_are_their_probabilities(monkeypatch):
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    pairs = torch.cartesian_prod(grid, grid)
    monkeypatch.setattr(Streams, "uniforms", lambda self, count, *purpose: pairs)
    tokens = generate(Table(0), None, streams(0, range(len(pairs))), Settings.plain())
    share = torch.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4).double() / len(tokens)
    assert share.tolist() == pytest.approx([0.27, 0.03, 0.07, 0.63], abs=1e-9)


def test_guidance_one_runs_no_null_rows_and_is_no_guidance():
    guided, plain = Table(2), Table(2)
    labels = torch.arange(50) % 2
    one = generate(plain, labels, streams(0, range(50)), Settings.plain())
    near = generate(guided, labels, streams(0, range(50)), Settings(temperature=1.0, guidance_scale=1.0 + 1e-12))
    assert plain.rows == [50] and guided.rows == [100]
    assert torch.equal(one, near)


def test_guidance_without_classes_is_skipped():
    prior = Table(0)
    generate(prior, None, streams(0, range(5)), Settings(guidance_scale=3.0))
    assert prior.rows == [5]


def test_uniforms_belong_to_image_seed_and_purpose():
    first = streams(3, range(10)).uniforms(6)
    assert first.dtype == torch.float64 and first.min() >= 0 and first.max() < 1
    assert torch.equal(first[4:7], streams(3, range(4, 7)).uniforms(6))
    assert torch.equal(first[:, :4], streams(3, range(10)).uniforms(4))
    assert not torch.equal(first, streams(4, range(10)).uniforms(6))
    assert not torch.equal(first, streams(3, range(10)).uniforms(6, "masked", 0, 0))
    assert len(first.unique()) == first.numel()


def test_uniforms_are_uniform():
    values = streams(0, range(2000)).uniforms(4).flatten()
    assert values.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / values.numel()))


def test_a_prior_that_breaks_is_reported_not_sampled():
    prior = Table(0, constant=torch.nan)
    with pytest.raises(UserError, match="NaN"):
        generate(prior, None, streams(0, range(3)), Settings.plain())
