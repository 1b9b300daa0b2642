"""How a masked prior fills in codes, many in each forward pass."""

from __future__ import annotations

import math

import pytest
import torch

from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage2_prior.priors import drawing
from stage2_prior.priors.build import build_prior
from tessera.codes.layout import CodeLayout, Level

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 2, 1, 3), Level(2, 2, 2, 6)))


def streams(count: int) -> Streams:
    return Streams(0, tuple(range(count)), torch.device("cpu"))


@pytest.fixture
def prior(prior_arguments):
    torch.manual_seed(0)
    params = prior_arguments("masked")
    prior = build_prior({"name": "masked", "params": params, "layout": LAYOUT.to_json(), "num_classes": 3})
    for parameter in prior.parameters():
        parameter.data.normal_(0, 0.5)
    return prior.double().eval()


@pytest.mark.parametrize(
    "settings", [Settings.plain(), Settings(top_p=0.9, temperature=[1.0, 0.5])], ids=["plain", "set"]
)
def test_masked_decoding_chooses_alike_however_many_at_once(settings, prior, monkeypatch):
    labels = torch.arange(5) % 3
    whole = generate(prior, labels, streams(5), settings)
    monkeypatch.setattr(drawing, "CHOSEN_AT_ONCE", 2 * LAYOUT.num_tokens * LAYOUT.vocabulary)
    assert torch.equal(generate(prior, labels, streams(5), settings), whole)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_masked_decoding_knows_a_cosine_of_its_codes_after_each_step(steps, prior, monkeypatch):
    unknown = []
    original = type(prior).predict

    def noted(self, tokens, masked, *arguments):
        unknown.append(masked.sum(1).tolist())
        return original(self, tokens, masked, *arguments)

    monkeypatch.setattr(type(prior), "predict", noted)
    generate(prior, torch.zeros(3, dtype=torch.int64), streams(3), Settings(decoding_steps=steps, guidance_scale=1.0))
    count, n = min(steps, LAYOUT.num_tokens), LAYOUT.num_tokens
    assert len(unknown) == count and unknown[0] == [n] * 3
    for step, left in enumerate(unknown[1:], 1):
        cosine = math.floor(math.cos(math.pi / 2 * step / count) * n)
        assert left == [min(cosine, unknown[step - 1][0] - 1)] * 3
