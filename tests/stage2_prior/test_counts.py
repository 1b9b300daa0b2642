"""The counts prior against its definition, carried out one left-out code at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stage2_prior.priors import counts as product
from stage2_prior.priors.smoothing import best_strength, left_out, smooth_group
from tessera.codes.layout import CodeLayout, Level

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 3, 1, 4),))


def tables(tokens: np.ndarray, labels: np.ndarray, classes: int, size: int) -> np.ndarray:
    """Counts (classes + 1, positions, K), the last row over all."""
    counts = np.zeros((classes + 1, tokens.shape[1], size))
    for row, label in zip(tokens, labels, strict=True):
        for position, token in enumerate(row):
            counts[label, position, token] += 1
            counts[-1, position, token] += 1
    return counts


def predict(counts: np.ndarray, strengths: tuple[float, float, float], tier: int, y: int, n: int, k: int) -> float:
    """One probability by the definition: tier 0 is the level's histogram, 1 the position's, 2 the class's."""
    q = 1 / counts.shape[-1]
    for histogram, a in list(zip((counts[-1].sum(0), counts[-1, n], counts[y, n]), strengths, strict=True))[: tier + 1]:
        q = (histogram[k] + a * q) / (histogram.sum() + a)
    return q


def leave_one_out_nats(counts: np.ndarray, strengths: tuple[float, float, float], tier: int) -> float:
    """-log probability of every code, each predicted from counts from which it alone was taken."""
    total = 0.0
    for y, n, k in zip(*np.nonzero(counts[:-1]), strict=True):
        without = counts.copy()
        without[y, n, k] -= 1
        without[-1, n, k] -= 1
        total -= counts[y, n, k] * math.log(predict(without, strengths, tier, y, n, k))
    return total


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Codes that depend on class and position, but not wholly."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=30)
    tokens = (labels[:, None] + np.arange(3)[None] + random.integers(2, size=(30, 3))) % 4
    noise = random.random(tokens.shape) < 0.2
    return np.where(noise, random.integers(4, size=tokens.shape), tokens), labels


def test_strengths_maximise_the_leave_one_out_likelihood(data):
    counts = tables(*data, classes=2, size=4)
    _, strengths = smooth_group(counts)
    for tier in range(3):
        best = leave_one_out_nats(counts, strengths, tier)
        for factor in (0.5, 0.9, 1.1, 2):
            other = list(strengths)
            other[tier] *= factor
            assert leave_one_out_nats(counts, tuple(other), tier) > best - 1e-9


def test_the_closed_form_is_the_leave_one_out_likelihood(data):
    counts = tables(*data, classes=2, size=4)
    strengths = (3.0, 5.0, 0.7)
    level = counts[-1].sum(0)
    y, n, k = np.nonzero(counts[:-1])
    q = left_out(level[k], level.sum(), strengths[0], 1 / 4)
    q = left_out(counts[-1, n, k], counts[-1].sum(-1)[n], strengths[1], q)
    q = left_out(counts[y, n, k], counts.sum(-1)[y, n], strengths[2], q)
    closed = -(counts[y, n, k] * np.log(q)).sum()
    assert closed == pytest.approx(leave_one_out_nats(counts, strengths, 2), rel=1e-12)


def test_probabilities_are_the_smoothed_histograms(data):
    counts = tables(*data, classes=2, size=4)
    probabilities, strengths = smooth_group(counts)
    for y, n, k in np.ndindex(*counts.shape):
        expected = predict(counts, strengths, 2 if y < 2 else 1, y, n, k)
        assert probabilities[y, n, k] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-12)


def test_a_histogram_that_says_nothing_new_gives_way_to_its_parent():
    parent = np.array([0.5, 0.3, 0.2])
    assert best_strength(1000 * parent, 1000.0, parent) > 1e4
    assert best_strength(np.array([1000.0]), 1000.0, np.array([0.1])) < 1


def test_fitting_beats_uniform_on_new_codes_and_labels_help(data, make_fresh):
    tokens, labels = (torch.from_numpy(a) for a in data)
    prior = make_fresh("counts", LAYOUT, 2)
    prior.fit([(tokens[:20], labels[:20])])
    labelled, unlabelled = prior(tokens[20:], labels[20:]).item(), prior(tokens[20:], None).item()
    assert labelled < unlabelled < math.log(4)


def test_fitting_streams(data, make_fresh):
    tokens, labels = (torch.from_numpy(a) for a in data)
    whole, streamed = make_fresh("counts", LAYOUT, 2), make_fresh("counts", LAYOUT, 2)
    whole.fit([(tokens, labels)])
    streamed.fit((tokens[i : i + 7], labels[i : i + 7]) for i in range(0, 30, 7))
    assert torch.equal(whole.table, streamed.table)


def test_a_row_without_label_counts_for_positions_only(data, make_fresh):
    tokens, labels = (torch.from_numpy(a) for a in data)
    by_none, by_null = make_fresh("counts", LAYOUT, 2), make_fresh("counts", LAYOUT, 2)
    by_none.fit([(tokens, labels), (tokens, None)])
    by_null.fit([(tokens, labels), (tokens, torch.full_like(labels, 2))])
    assert torch.equal(by_none.table, by_null.table)
    unlabelled = make_fresh("counts", LAYOUT, 2)
    unlabelled.fit([(tokens, None)])
    assert torch.equal(unlabelled.table[0], unlabelled.table[2])


def test_a_class_that_was_never_seen_gets_the_position_histogram(data, make_fresh):
    tokens, labels = (torch.from_numpy(a) for a in data)
    prior = make_fresh("counts", LAYOUT, 5)
    prior.fit([(tokens, labels)])
    torch.testing.assert_close(prior.table[4], prior.table[5])


def test_above_the_largest_table_classes_are_left_out(data, make_fresh, monkeypatch):
    tokens, labels = (torch.from_numpy(a) for a in data)
    unlabelled = make_fresh("counts", LAYOUT, 0)
    monkeypatch.setattr(product, "LARGEST_TABLE", 3 * unlabelled.table.numel())
    assert make_fresh("counts", LAYOUT, 2).uses_labels
    prior = make_fresh("counts", LAYOUT, 5)
    assert not prior.uses_labels and prior.table.shape == unlabelled.table.shape
    prior.fit([(tokens, labels)])
    unlabelled.fit([(tokens, None)])
    assert torch.equal(prior.table, unlabelled.table)
    assert torch.equal(prior.nll(tokens, labels), unlabelled.nll(tokens, None))
    assert torch.equal(prior.logits(tokens, labels), unlabelled.logits(tokens, None))


def test_each_depth_has_a_histogram_of_its_own(make_fresh):
    layout = CodeLayout((1, 8, 8), (Level(4, 4, 2, 8),))
    tokens = torch.tensor([1, 6]).repeat(1, 16)  # depth 0 is always 1, depth 1 always 6
    prior = make_fresh("counts", layout, 0)
    prior.fit([(tokens, None)])
    assert prior(tokens, None).item() < 0.05


def test_no_codes_at_all_is_the_uniform_prior(make_fresh):
    prior = make_fresh("counts", LAYOUT, 2)
    prior.fit([])
    torch.testing.assert_close(prior.table, torch.full((3, 3, 4), -math.log(4)))


@pytest.mark.parametrize("token", [-1, 4])
def test_a_code_beyond_its_codebook_is_refused(token, make_fresh):
    with pytest.raises(ValueError, match="outside its codebook"):
        make_fresh("counts", LAYOUT, 0).fit([(torch.tensor([[0, token, 0]]), None)])
