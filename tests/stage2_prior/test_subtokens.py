"""Codes of large codebooks as sub-tokens: the same distribution's properties, no table of the codebook's size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from common.codes import CodeLayout, Level
from common.errors import UserError
from stage2_prior.priors import build_prior
from stage2_prior.priors.subtokens import SubTokens, factors, split_layout

SNAIL = {"channels": 8, "hidden_channels": 8, "kernel_size": 3, "blocks": 1, "residuals": 1, "heads": 2}
SNAIL |= {"conditioning_blocks": 1, "dropout": 0.0}
GPT2 = {"architecture": "gpt2", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "extra": {}}
RQ = {"layers": 1, "depth_layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
FAMILIES = {
    "uniform": {},
    "counts": {},
    "pixelcnn": {"layers": 1, "channels": 8, "kernel_size": 3, "dropout": 0.0},
    "pixelsnail": SNAIL,
    "transformer": GPT2,
    "rq_transformer": RQ,
}


def make(name: str, layout: CodeLayout, largest: int):
    torch.manual_seed(0)
    params = FAMILIES[name] | {"largest_softmax": largest}
    prior = build_prior({"name": name, "params": params, "layout": layout.to_json(), "num_classes": 2})
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.3)
    return prior.eval()


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


LAYOUT = CodeLayout((1, 8, 8), (Level(1, 1, 2, 2), Level(1, 1, 1, 12)))


@pytest.mark.parametrize("name", FAMILIES)
def test_probabilities_of_all_codes_sum_to_one(name):
    prior = make(name, LAYOUT, 4).double()
    tokens = torch.tensor(list(itertools.product(range(2), range(2), range(12))))
    prior.fit([(tokens[:30], torch.arange(30) % 3)])
    for label in range(3):
        nats = prior.nll(tokens, torch.full((len(tokens),), label))
        assert nats.shape == tokens.shape
        assert nats.sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_every_code_splits_into_sub_tokens_and_back():
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


def test_a_codebook_of_262144_codes_has_no_parameter_or_logit_of_its_size():
    layout = CodeLayout((3, 8, 8), (Level(2, 2, 1, 2**18),))
    for name in FAMILIES:
        prior = make(name, layout, 16384)
        assert isinstance(prior, SubTokens)
        assert max((max(t.shape) for t in prior.state_dict().values() if t.ndim), default=0) <= 2 * 512 + 1
        tokens = torch.randint(2**18, (3, 4))
        assert prior.inner.logits(prior.split(tokens), None).shape == (3, 8, 512)
        assert prior.nll(tokens, None).shape == (3, 4)


def test_a_codebook_within_the_limit_is_left_alone():
    assert not isinstance(make("pixelcnn", LAYOUT, 12), SubTokens)
