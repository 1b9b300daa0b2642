"""The masked prior: its bound against every order of unmasking."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from stage2_prior.priors import blocks
from stage2_prior.priors.build import build_prior
from tessera.codes.layout import CodeLayout, Level

LAYOUT = CodeLayout((1, 4, 4), (Level(1, 1, 1, 3), Level(1, 2, 1, 2)))
MASKED = {"layers": 2, "width": 8, "heads": 2, "dropout": 0.0, "bound_draws": 4}


LAYOUTS = {
    "two levels": LAYOUT,
    "grid": CodeLayout((1, 4, 4), (Level(2, 2, 1, 2),)),
    "rectangle": CodeLayout((1, 2, 6), (Level(1, 3, 1, 3),)),
    "depth 4": CodeLayout((1, 2, 2), (Level(1, 1, 4, 2, (2, 2, 1, 2)),)),
}


def make(first: int = 0, layout: CodeLayout = LAYOUT, num_classes: int = 2, **changes: object):
    config = {"name": "masked", "params": MASKED | changes, "layout": layout.to_json(), "num_classes": num_classes}
    prior = build_prior(config, first=first)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.7)
    return prior.double().eval()


def every_sequence(layout: CodeLayout = LAYOUT) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes.tolist()])))


@torch.no_grad()
def by_order(prior, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats (orders, B, n) when the prior's own tokens are said one by one, in every order."""
    own = list(range(prior.given_tokens, prior.layout.num_tokens))
    orders = list(itertools.permutations(range(len(own))))
    nats = torch.zeros(len(orders), len(tokens), len(own), dtype=torch.float64)
    for i, order in enumerate(orders):
        unknown = torch.ones(len(tokens), len(own), dtype=torch.bool)
        for place in order:
            log_p = prior.predict(tokens, unknown, labels).log_softmax(-1)[:, place]
            nats[i, :, place] = -log_p.gather(-1, tokens[:, prior.given_tokens + place, None])[:, 0]
            unknown[:, place] = False
    return nats


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize(
    ("layout", "first"), [*((layout, 0) for layout in LAYOUTS.values()), (LAYOUT, 1)], ids=[*LAYOUTS, "last level"]
)
def test_the_bound_is_the_mean_over_orders_and_above_minus_log_p(layout, first, num_classes):
    prior, tokens = make(first, layout, num_classes, bound_draws=1000), every_sequence(layout)
    labels = torch.arange(len(tokens)) % (num_classes + 1)
    nats = by_order(prior, tokens, labels)
    found, variance = prior.estimate(tokens, labels)
    errors = (found.sum(1) - nats.sum(-1).mean(0)) / variance.sqrt()
    assert errors.abs().max() < 4
    torch.testing.assert_close(found, nats.mean(0), atol=0.5, rtol=0)
    # -log of the mixture over orders, which sampling with one code a step draws from.
    mixture = -torch.logsumexp(-nats.sum(-1), 0) + math.log(len(nats))
    assert (found.sum(1) > mixture - 4 * variance.sqrt()).all()
    for label in range(num_classes + 1):
        p = (-by_order(prior, tokens, torch.full((len(tokens),), label)).sum(-1)).exp().mean(0)
        sums = dict.fromkeys(contexts := [tuple(row) for row in tokens[:, : prior.given_tokens].tolist()], 0.0)
        for context, probability in zip(contexts, p.tolist(), strict=True):
            sums[context] += probability
        assert list(sums.values()) == pytest.approx([1] * len(sums), abs=1e-9)


def test_estimates_are_many_and_independent():
    prior, tokens = make(bound_draws=400), every_sequence()
    first, second = (prior.estimate(tokens, None, again) for again in (0, 1))
    assert torch.equal(first[0], prior.nll(tokens, None)) and not torch.equal(first[0], second[0])
    errors = (first[0] - second[0]).sum(1) / (first[1] + second[1]).sqrt()
    assert errors.abs().max() < 4


def test_known_codes_never_see_themselves_predicted_from_nothing_unknown():
    prior, tokens = make(), every_sequence()[:1]
    unknown = torch.tensor([[True, False, True]])
    before = prior.predict(tokens, unknown, None)
    for place in (0, 2):  # what is masked changes nothing
        changed = tokens.clone()
        changed[:, place] = 1 - changed[:, place]
        assert torch.equal(prior.predict(changed, unknown, None), before)
    changed = tokens.clone()
    changed[:, 1] = 1 - changed[:, 1]  # what is known changes all the others, before and after
    after = prior.predict(changed, unknown, None)
    assert (after - before).nan_to_num(0).abs().amax(-1)[0, [0, 2]].min() > 1e-6


def test_an_image_has_the_same_bound_in_any_batch_and_the_global_random_state_is_left_alone():
    prior, tokens = make(), every_sequence()
    state = torch.get_rng_state()
    whole = prior.nll(tokens, None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(torch.cat([prior.nll(part, None) for part in tokens.flip(0).split(5)]).flip(0), whole)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("at_once", [2, 2048])  # sequences: 5 are several parts, the last a smaller one
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.3)])
def test_a_frozen_transformer_predicts_as_the_prior_does(rows, at_once, first, dtype, atol, monkeypatch):
    monkeypatch.setattr(blocks, "CACHED_ROWS", at_once * make(first).layout.num_tokens * dtype.itemsize // 4)
    prior = make(first, width=32).to(torch.float32 if dtype == torch.bfloat16 else dtype)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if dtype == torch.bfloat16:
        prior = prior.lowered(dtype)
    tokens, labels = every_sequence()[:rows], torch.arange(rows) % 3
    unknown = torch.rand(rows, prior.own_tokens) < 0.5
    with torch.no_grad():
        expected, found = (prior.predict(tokens, unknown, labels, part) for part in (None, prior.frozen(rows)))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_training_masks_from_one_code_to_all():
    prior, seen = make(), set()
    original = prior.predict

    def noted(tokens, masked, labels, transformer):
        seen.update(masked.sum(1).tolist())
        return original(tokens, masked, labels, transformer)

    prior.predict = noted
    torch.manual_seed(0)
    loss = prior(every_sequence().repeat(20, 1), None)
    assert seen == {1, 2, 3}
    assert loss.ndim == 0 and loss.isfinite()


def test_a_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    prior = make(width=32).float().train()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    tokens, labels = torch.tensor([[0, 1, 1], [2, 0, 1], [1, 1, 0]]), torch.arange(3)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        prior(tokens, labels).backward()
        optimizer.step()
    assert prior.eval().nll(tokens, labels).mean() < 0.1
