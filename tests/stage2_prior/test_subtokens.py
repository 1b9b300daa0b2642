"""Codes of large codebooks as sub-tokens: the same distribution's properties, no table of the codebook's size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from stage2_prior.priors.build import build_prior, prior_class
from stage2_prior.priors.subtokens import SubTokens, factors, split_layout
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError
from tessera.parameters.parts import options

PACKAGE = "stage2_prior.priors"
EXACT = [name for name in options(PACKAGE) if name != "chain" and prior_class(name).exact]
LAYOUTS = {
    "two levels": CodeLayout((1, 8, 8), (Level(1, 1, 2, 2), Level(1, 1, 1, 12))),
    "one level": CodeLayout((1, 8, 8), (Level(2, 2, 1, 4),)),
    "residual depth 4": CodeLayout((1, 8, 8), (Level(1, 1, 4, 4),)),
    "rectangle": CodeLayout((1, 4, 12), (Level(1, 3, 1, 6),)),
}
LAYOUT = LAYOUTS["two levels"]


@pytest.fixture
def make(prior_arguments):
    """`make("masked", layout, 3)`: a prior with softmaxes of at most 3 values; its weights are random."""

    def prior_of(name: str, layout: CodeLayout, largest: int, num_classes: int = 2):
        torch.manual_seed(0)
        changes = {"bound_draws": 3000} if name == "masked" else {}
        params = prior_arguments(name, largest_softmax=largest, **changes)
        prior = build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": num_classes})
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.normal_(0, 0.3)
        return prior.eval()

    return prior_of


def every_sequence(layout: CodeLayout) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes.tolist()])))


@pytest.mark.parametrize(
    ("size", "largest", "expected"),
    [
        (2**18, 16384, (512, 512)),
        (2**18, 100, (64, 64, 64)),
        (2**19, 16384, (1024, 512)),
        (64000, 300, (256, 250)),
        (12, 4, (4, 3)),
        (30, 5, (5, 3, 2)),
    ],
)
def test_a_codebook_size_has_the_fewest_and_most_even_factors(size, largest, expected):
    assert factors(size, largest) == expected
    assert math.prod(expected) == size


def test_a_codebook_size_with_a_large_prime_is_refused():
    with pytest.raises(UserError, match=r"8209 is no product of numbers up to largest_softmax, 8000"):
        factors(8209, 8000)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("num_classes", [0, 2])
def test_probabilities_of_all_codes_sum_to_one_and_none_knows_a_later_one(name, layout, num_classes, make):
    prior, tokens = make(name, layout, 3, num_classes).double(), every_sequence(layout)
    assert isinstance(prior, SubTokens)
    prior.fit([(tokens[:30], torch.arange(30) % num_classes if num_classes else None)])
    for label in range(num_classes + 1):
        nats = prior.nll(tokens, torch.full((len(tokens),), label))
        assert nats.shape == tokens.shape
        assert nats.sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
        if name == "next_scale":  # the second sub-token of a code knows the first ones of all codes of its level
            continue
        for place in range(1, layout.num_tokens):
            same = (tokens[:, :place] == tokens[0, :place]).all(1)
            torch.testing.assert_close(nats[same][:, :place], nats[:1, :place].expand(int(same.sum()), -1))


@pytest.mark.parametrize("num_classes", [0, 2])
def test_the_bound_of_a_masked_prior_of_sub_tokens_is_the_mean_over_their_orders(num_classes, make):
    layout = CodeLayout((1, 4, 8), (Level(1, 2, 1, 4),))
    prior, tokens = make("masked", layout, 3, num_classes).double(), every_sequence(layout)
    labels, parts = torch.arange(len(tokens)) % (num_classes + 1), prior.split(tokens)
    assert isinstance(prior, SubTokens) and parts.shape[1] == 4
    orders, total = list(itertools.permutations(range(4))), 0.0
    with torch.no_grad():
        for order in orders:
            unknown = torch.ones(len(parts), 4, dtype=torch.bool)
            for place in order:
                log_p = prior.inner.predict(parts, unknown, labels).log_softmax(-1)[:, place]
                total = total - log_p.gather(-1, parts[:, place, None])[:, 0]
                unknown[:, place] = False
        found, variance = prior.estimate(tokens, labels)
    assert found.shape == tokens.shape
    assert ((found.sum(1) - total / len(orders)) / variance.sqrt()).abs().max() < 4


def test_every_code_splits_into_sub_tokens_and_back(make):
    layout = CodeLayout((1, 8, 8), (Level(1, 2, 1, 5), Level(2, 2, 2, 30), Level(1, 3, 1, 12)))
    prior = make("counts", layout, 5)
    tokens = (torch.rand(500, layout.num_tokens) * layout.codebook_sizes).long()
    tokens[0], tokens[1] = 0, layout.codebook_sizes - 1
    parts = prior.split(tokens)
    assert torch.equal(prior.join(parts), tokens)
    assert (parts < prior.inner.layout.codebook_sizes).all() and parts.amax(0).add(1).equal(
        prior.inner.layout.codebook_sizes
    )
    coarse = layout.slices()[0].stop
    assert torch.equal(prior.split(tokens[:, :coarse]), parts[:, :coarse])


def test_the_layout_keeps_its_positions_and_its_uniform_nats():
    split = split_layout(LAYOUT, 4)
    assert split.levels == (Level(1, 1, 2, 2), Level(1, 1, 2, 4, (4, 3)))
    assert split.uniform_nats == pytest.approx(LAYOUT.uniform_nats)
    assert CodeLayout.from_json(LAYOUT.to_json()) == LAYOUT


def test_a_codebook_of_262144_codes_has_no_parameter_or_logit_of_its_size(make):
    layout = CodeLayout((3, 8, 8), (Level(2, 2, 1, 2**18),))
    for name in EXACT:
        prior = make(name, layout, 16384)
        assert isinstance(prior, SubTokens)
        assert max((max(t.shape) for t in prior.state_dict().values() if t.ndim), default=0) <= 2 * 512 + 1
        tokens = torch.randint(2**18, (3, 4))
        assert prior.inner.logits(prior.split(tokens), None).shape == (3, 8, 512)
        assert prior.nll(tokens, None).shape == (3, 4)


def test_a_codebook_within_the_limit_is_left_alone(make):
    assert not isinstance(make("pixelcnn", LAYOUT, 12), SubTokens)
