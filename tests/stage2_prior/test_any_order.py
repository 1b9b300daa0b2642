"""The any-order prior: a distribution in every order, and the orders that it learns."""

from __future__ import annotations

import itertools

import pytest
import torch

from stage2_prior.priors.build import build_prior
from stage2_prior.priors.ordered import passes_of
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError
from tessera.parameters import validate

TINY = {
    "two tokens": CodeLayout((1, 4, 8), (Level(1, 2, 1, 3),)),
    "two tokens of a position": CodeLayout((1, 4, 4), (Level(1, 1, 2, 4, (4, 2)),)),
    "two levels": CodeLayout((1, 4, 4), (Level(1, 1, 1, 2), Level(1, 1, 1, 3))),
    "three tokens": CodeLayout((1, 4, 8), (Level(1, 1, 1, 3), Level(1, 2, 1, 2))),
}
LAYOUTS = {
    "several scales": CodeLayout((1, 8, 8), (Level(1, 1, 1, 3), Level(1, 2, 1, 3), Level(2, 2, 1, 3))),
    "two levels of unequal K": CodeLayout((3, 8, 4), (Level(1, 2, 1, 5), Level(2, 2, 1, 2))),
    "residual depth": CodeLayout((1, 4, 8), (Level(1, 2, 3, 4, (4, 2, 3)),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(2, 3, 1, 3),)),
}


@pytest.fixture
def make(prior_arguments):
    """`make(layout)`: a prior with random, large weights in float64."""

    def prior_of(layout: CodeLayout, num_classes: int = 2, first: int = 0, **changes: object):
        torch.manual_seed(0)
        params = prior_arguments("any_order", layers=2, **changes)
        config = {"name": "any_order", "params": params, "layout": layout.to_json(), "num_classes": num_classes}
        prior = build_prior(config, first=first).double().eval()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(0, 0.5)
        return prior

    return prior_of


def every_sequence(layout: CodeLayout) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes.tolist()])))


def same_for_all(order, tokens: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(order)).expand(len(tokens), -1)


def stepwise(prior, tokens: torch.Tensor, labels: torch.Tensor, order) -> torch.Tensor:
    """-log p (B,), the sum of one conditional a token; tokens that come later are replaced by 0."""
    total, known = torch.zeros(len(tokens), dtype=torch.float64), torch.zeros_like(tokens)
    for place in order:
        log_p = prior.logits(known, labels, same_for_all(order, tokens))[:, place].log_softmax(-1)
        total -= log_p.gather(-1, tokens[:, place, None])[:, 0]
        known[:, place] = tokens[:, place]
    return total


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("layout", TINY.values(), ids=TINY)
@torch.no_grad()
def test_in_every_order_the_joint_sums_to_one_and_is_the_product_of_its_conditionals(layout, num_classes, make):
    prior, tokens = make(layout, num_classes), every_sequence(layout)
    for label in range(num_classes + 1):
        labels, found = torch.full((len(tokens),), label), []
        for order in itertools.permutations(range(layout.num_tokens)):
            joint = prior.nll(tokens, labels, same_for_all(order, tokens)).sum(1)
            assert joint.neg().exp().sum().item() == pytest.approx(1, abs=1e-9)
            torch.testing.assert_close(joint, stepwise(prior, tokens, labels, order), rtol=1e-9, atol=1e-9)
            found.append(joint)
        assert all((one - other).abs().max() > 1e-3 for one, other in itertools.combinations(found, 2))
        torch.testing.assert_close(prior.nll(tokens, labels).sum(1), found[0])  # the layout's order


@pytest.mark.parametrize("num_classes", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one_in_random_orders(layout, num_classes, make):
    prior, tokens = make(layout, num_classes), every_sequence(layout)
    for order in [*prior.random_orders(torch.rand(3, prior.noise)), torch.arange(layout.num_tokens).flip(0)]:
        for label in range(num_classes + 1):
            nats = prior.nll(tokens, torch.full((len(tokens),), label), same_for_all(order.tolist(), tokens)).sum(1)
            assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-9)


@torch.no_grad()
def test_the_last_level_of_a_chain_is_a_distribution_in_every_order(make):
    layout = TINY["three tokens"]
    prior, tokens = make(layout, first=1), every_sequence(layout)
    for order in ((1, 2), (2, 1)):
        p = prior.nll(tokens, None, same_for_all(order, tokens)).sum(1).neg().exp()
        assert p.unflatten(0, (3, 4)).sum(1).tolist() == pytest.approx([1, 1, 1], abs=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_a_token_changes_the_logits_of_those_after_it_in_the_order_and_of_no_other(layout, make, make_tokens):
    prior, tokens = make(layout), make_tokens(layout, 1)
    order = torch.randperm(layout.num_tokens)[None]
    before = prior.logits(tokens, None, order)
    for time, place in enumerate(order[0].tolist()):
        changed = tokens.clone()
        changed[:, place] = (tokens[:, place] + 1) % layout.codebook_sizes[place]
        difference = (prior.logits(changed, None, order) - before).nan_to_num(0).abs().amax((0, 2))
        assert difference[order[0, : time + 1]].max() < 1e-12
        assert (difference[order[0, time + 1 :]] > 1e-9).all()


@torch.no_grad()
def test_what_is_predicted_is_told_by_its_place(make, make_tokens):
    """Two positions of one level share a last layer: with nothing known, only their places tell them apart."""
    layout = LAYOUTS["rectangle"]
    prior, tokens = make(layout), make_tokens(layout, 6)
    orders = torch.stack([torch.arange(6).roll(-i) for i in range(6)])  # each position comes first once
    first = prior.logits(tokens, None, orders)[torch.arange(6), torch.arange(6)]
    assert min((one - other).abs().max() for one, other in itertools.combinations(first, 2)) > 1e-3


@torch.no_grad()
def test_each_sequence_may_have_an_order_of_its_own(make, make_tokens):
    layout = LAYOUTS["two levels of unequal K"]
    prior, tokens, labels = make(layout), make_tokens(layout, 5), torch.arange(5) % 3
    order = torch.stack([torch.randperm(layout.num_tokens) for _ in range(5)])
    each = [prior.logits(tokens[i : i + 1], labels[i : i + 1], order[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(prior.logits(tokens, labels, order), torch.cat(each))


@pytest.mark.parametrize("order", [[[0, 0, 1]], [[0, 1]], [[1, 2, 3]], [[0, 1, 2], [0, 1, 2]]])
def test_what_is_no_order_of_the_own_tokens_is_refused(order, make, make_tokens):
    layout = TINY["three tokens"]
    with pytest.raises(ValueError, match=r"expected permutations \(1, 3\) of the places from 0 on"):
        make(layout).nll(make_tokens(layout, 1), None, torch.tensor(order))


def test_every_order_of_a_level_is_equally_likely(make):
    prior = make(CodeLayout((1, 4, 12), (Level(1, 3, 1, 4),)))
    counts = prior.random_orders(torch.rand(12_000, prior.noise)).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6 and (counts - 2000).abs().max() < 5 * 2000**0.5


def test_half_of_the_orders_go_from_level_to_level_and_in_the_others_any_positions_come_first(make):
    layout = CodeLayout((1, 8, 8), (Level(1, 2, 1, 3), Level(2, 2, 2, 6)))
    prior = make(layout)
    orders = prior.random_orders(torch.rand(4000, prior.noise))
    assert torch.equal(orders.sort(1).values, torch.arange(10).expand(4000, -1))
    levels, depths = layout.places[orders][..., 0], layout.places[orders][..., 3]
    in_turn = (levels.diff(dim=1) >= 0).all(1).double().mean().item()
    assert 0.5 < in_turn < 0.65  # those of the other half that happen to be so, too
    second = (depths == 1).nonzero()
    assert torch.equal(orders[second[:, 0], second[:, 1]], orders[second[:, 0], second[:, 1] - 1] + 1)
    # Each fine position is the first of all now and then, each coarse one the last.
    assert orders[:, 0].unique().tolist() == [0, 1, 2, 4, 6, 8] and orders[:, -1].unique().tolist() == [
        0,
        1,
        3,
        5,
        7,
        9,
    ]


def test_random_orders_give_way_to_the_layouts_between_two_shares_of_the_training(make):
    layout = CodeLayout((1, 8, 16), (Level(2, 4, 1, 3),))
    noise = torch.rand(2000, 10)

    def in_layouts_order(annealing, done: float) -> float:
        orders = make(layout, annealing=annealing).random_orders(noise, torch.full((2000,), done))
        return (orders == torch.arange(8)).all(1).double().mean().item()

    found = [in_layouts_order((0.5, 0.75), done) for done in (0.0, 0.5, 0.6, 0.75, 1.0)]
    assert found == pytest.approx([0, 0, 0.4, 1, 1], abs=0.05)
    assert in_layouts_order(None, 1.0) < 0.01
    assert [in_layouts_order((0.5, 0.5), done) for done in (0.49, 0.51)] == pytest.approx([0, 1], abs=0.01)


def test_an_annealing_that_ends_before_it_begins_is_refused(raw_params):
    raw_params["stage2_prior"]["name"] = "any_order"
    raw_params["stage2_prior"]["any_order"]["annealing"] = [0.75, 0.5]
    with pytest.raises(UserError, match=r"stage2_prior.any_order.annealing: begins at 0.75, after its end at 0.5"):
        validate(raw_params)


def test_the_loss_without_noise_is_that_of_the_layouts_order_and_with_noise_of_the_orders_drawn(make, make_tokens):
    layout = LAYOUTS["several scales"]
    prior, tokens, labels = make(layout), make_tokens(layout, 6), torch.arange(6) % 3
    noise = torch.rand(6, prior.noise)
    drawn = prior.nll(tokens, labels, prior.random_orders(noise)).mean()
    torch.testing.assert_close(prior(tokens, labels, noise, torch.zeros(6)), drawn)
    torch.testing.assert_close(prior(tokens, labels), prior.nll(tokens, labels).mean())


@pytest.mark.parametrize(
    ("kinds", "steps", "expected"),
    [
        ([(0, 0)] * 10, 1, [(10, 1)]),
        ([(0, 0)] * 10, 4, [(1, 1), (2, 1), (4, 1), (3, 1)]),
        ([(0, 0)] * 3, 100, [(1, 1)] * 3),
        ([(0, 0), (0, 1)] * 4 + [(1, 0)] * 2, 2, [(2, 2), (2, 2), (1, 1), (1, 1)]),
        ([(0, 1), (0, 0), (0, 1), (0, 0), (0, 1)], 1, [(1, 1), (2, 2)]),  # a position of which one code was given
    ],
)
def test_passes_grow_along_a_cosine_within_each_level(kinds, steps, expected):
    assert passes_of(kinds, steps) == expected
