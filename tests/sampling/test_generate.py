"""The decoding loop against recomputation, with every real prior and one of plain tables."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from recomputed_tokens import recompute, streams

from sampling.generate import generate
from sampling.settings import Settings
from stage2_prior.priors.build import build_prior
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError
from tessera.parameters.parts import options

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 2, 1, 3), Level(2, 2, 2, 6)))
LAYOUTS = {
    "one level": CodeLayout((1, 8, 8), (Level(2, 2, 1, 6),)),
    "two levels of unequal K": LAYOUT,
    "residual depth 4": CodeLayout((1, 4, 8), (Level(1, 2, 4, 4, (4, 3, 4, 2)),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(2, 3, 1, 4),)),
}
PACKAGE = "stage2_prior.priors"
Case = tuple[str, dict[str, Any]]  # an option, and the changes of its arguments
LLAMA: Case = ("transformer", {"architecture": "llama"})
PRIORS: dict[str, Case] = {name: (name, {}) for name in options(PACKAGE) if name != "chain"} | {
    "llama": LLAMA,
    "sub-tokens": ("pixelsnail", {"largest_softmax": 3}),
    "sub-tokens of a transformer": ("transformer", {"largest_softmax": 3}),
    "sub-tokens of rq_transformer": ("rq_transformer", {"largest_softmax": 3}),
    "masked sub-tokens": ("masked", {"largest_softmax": 3}),
    "sub-tokens in any order": ("any_order", {"largest_softmax": 3}),
}
# Each way to begin from the tokens of a coarser level: every kind of prior is the finer link of a chain once.
CHAINS: dict[str, tuple[Case, Case]] = {
    "chain": (PRIORS["transformer"], PRIORS["pixelsnail"]),
    "uniform, then rq_transformer": (PRIORS["uniform"], PRIORS["rq_transformer"]),
    "pixelsnail, then transformer": (PRIORS["pixelsnail"], PRIORS["transformer"]),
    "counts, then llama": (PRIORS["counts"], LLAMA),
    "rq_transformer, then sub-tokens": (PRIORS["rq_transformer"], ("pixelcnn", {"largest_softmax": 3})),
    "transformer, then counts": (PRIORS["transformer"], PRIORS["counts"]),
    "masked last": (PRIORS["pixelcnn"], PRIORS["masked"]),
    "next_scale last": (PRIORS["counts"], PRIORS["next_scale"]),
    "any order last": (PRIORS["pixelcnn"], PRIORS["any_order"]),
}
ALL = [*PRIORS, *CHAINS]


@pytest.fixture(scope="module")
def built_prior(prior_arguments):
    """See `random_prior`. Each is built once."""

    @cache
    def make(label: str, layout: CodeLayout, num_classes: int):
        torch.manual_seed(0)
        cases = [PRIORS[label]] if label in PRIORS else CHAINS[label][-len(layout.levels) :]
        links = [{"name": name, "params": prior_arguments(name, **changes)} for name, changes in cases]
        chosen = links[0] if label in PRIORS else {"name": "chain", "params": {"links": links}}
        prior = build_prior(chosen | {"layout": layout.to_json(), "num_classes": num_classes})
        for parameter in prior.parameters():
            parameter.data.normal_(0, 0.5)
        tokens = (torch.rand(40, layout.num_tokens) ** 2 * layout.codebook_sizes).long()
        prior.fit([(tokens, torch.arange(40) % num_classes if num_classes else None)])
        return prior.double().eval()

    return make


@pytest.fixture
def random_prior(built_prior):
    """`random_prior("masked")`: random weights in float64, where cached and full decoding cannot part at a rounding.

    Of a chain for two levels, the last link serves a single one.
    """

    def make(label: str, layout: CodeLayout = LAYOUT, num_classes: int = 3):
        prior = deepcopy(built_prior(label, layout, num_classes))
        torch.manual_seed(0)
        return prior

    return make


def classes_of(count: int, num_classes: int) -> torch.Tensor:
    """The classes in turn; without classes, the null label."""
    return torch.arange(count) % max(1, num_classes)


every_kind = pytest.mark.parametrize(
    ("layout", "num_classes"),
    [(layout, classes) for layout in LAYOUTS.values() for classes in (0, 3)],
    ids=[f"{name}, {classes} classes" for name in LAYOUTS for classes in (0, 3)],
)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "settings", [Settings.plain(), Settings(guidance_scale=2.5, top_p=0.95)], ids=["plain", "guided"]
)
@every_kind
def test_decoding_gives_the_tokens_of_recomputation(name, settings, layout, num_classes, random_prior):
    prior, labels = random_prior(name, layout, num_classes), classes_of(5, num_classes)
    tokens = generate(prior, labels, streams(1, range(5)), settings)
    assert torch.equal(tokens, recompute(prior, labels, settings))
    assert (tokens < layout.codebook_sizes).all()


@pytest.mark.parametrize("name", ALL)
@every_kind
def test_an_image_is_the_same_in_any_batch(name, layout, num_classes, random_prior):
    prior, labels = random_prior(name, layout, num_classes), classes_of(64, num_classes)
    settings = Settings(guidance_scale=2.0, temperature=0.8, decoding_steps=4)
    together = generate(prior, labels, streams(7, range(64)), settings)
    for i in (0, 1, 30, 63):
        alone = generate(prior, labels[i : i + 1], streams(7, range(i, i + 1)), settings)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 2.0])
@every_kind
def test_given_tokens_are_kept_and_the_others_answer_to_them(name, scale, layout, num_classes, random_prior):
    prior, labels = random_prior(name, layout, num_classes), classes_of(5, num_classes)
    whole, settings = generate(prior, labels, streams(2, range(5)), Settings.plain()), Settings(guidance_scale=scale)
    given = torch.where(torch.rand(whole.shape) < 0.5, (whole + 1) % layout.codebook_sizes, -1)
    given[0] = whole[0]
    tokens = generate(prior, labels, streams(1, range(5)), settings, given)
    assert torch.equal(tokens[given >= 0], given[given >= 0])
    assert torch.equal(tokens, recompute(prior, labels, settings, given))


@pytest.mark.parametrize("name", ALL)
def test_each_level_has_its_own_settings(name, random_prior):
    prior, labels = random_prior(name), torch.zeros(16, dtype=torch.int64)
    coarse = LAYOUT.slices()[0]
    for settings in (
        Settings(temperature=[0.0, 40.0], choice_temperature=0.0),
        Settings(temperature=[0.7, 1.3], top_k=[2, None], top_p=[None, 0.9], min_p=[0.1, None], decoding_steps=3),
    ):
        tokens = generate(prior, labels, streams(1, range(16)), settings)
        assert torch.equal(tokens, recompute(prior, labels, settings))
        if settings.filters(0)["temperature"] == 0 and name != "masked" and name != "masked sub-tokens":
            assert (tokens[:, coarse] == tokens[:1, coarse]).all()
            assert (tokens != tokens[:1]).any()


@pytest.mark.parametrize("name", ["pixelcnn", "sub-tokens", "masked", *CHAINS])
def test_rising_guidance_starts_at_none_and_ends_at_the_scale(name, random_prior):
    settings = Settings(guidance_scale=[3.0, 2.0], guidance_schedule="linear")
    assert [settings.scale(level, progress) for level, progress in ((0, 0.0), (0, 1.0), (1, 0.5))] == [1.0, 3.0, 1.5]
    prior, labels = random_prior(name), torch.arange(12) % 3
    rising = generate(prior, labels, streams(1, range(12)), settings)
    constant = generate(prior, labels, streams(1, range(12)), Settings(guidance_scale=[3.0, 2.0]))
    assert not torch.equal(rising, constant)
    assert torch.equal(rising, recompute(prior, labels, settings))


@pytest.mark.parametrize("name", ["chain", "masked last"])
def test_rising_guidance_goes_on_from_link_to_link(name, monkeypatch, random_prior):
    asked, scale = [], Settings.scale
    monkeypatch.setattr(
        Settings, "scale", lambda self, level, moment: asked.append(moment) or scale(self, level, moment)
    )
    settings = Settings(guidance_scale=2.0, guidance_schedule="linear", decoding_steps=4)
    generate(random_prior(name), torch.zeros(2, dtype=torch.int64), streams(0, range(2)), settings)
    assert asked[0] == 0 and asked[-1] == 1 and asked == sorted(asked)
    assert asked[LAYOUT.slices()[0].stop] == pytest.approx(LAYOUT.slices()[1].start / (LAYOUT.num_tokens - 1))


def test_a_link_whose_scale_is_one_runs_no_null_rows(monkeypatch, random_prior):
    prior, rows = random_prior("chain"), []
    for link in prior.links:
        begin = link.begin
        monkeypatch.setattr(
            link, "begin", lambda labels, coarser, begin=begin: rows.append(len(labels)) or begin(labels, coarser)
        )
    labels = torch.arange(4) % 3
    tokens = generate(prior, labels, streams(1, range(4)), Settings(guidance_scale=[2.0, 1.0]))
    generate(prior, None, streams(1, range(4)), Settings(guidance_scale=2.0))
    assert rows == [8, 4, 4, 4]
    assert torch.equal(tokens, recompute(prior, labels, Settings(guidance_scale=[2.0, 1.0])))


@pytest.mark.parametrize("name", ALL)
@every_kind
def test_guidance_by_one_is_no_guidance(name, layout, num_classes, random_prior):
    prior, labels = random_prior(name, layout, num_classes), classes_of(6, num_classes)
    settings = [Settings(guidance_scale=s, guidance_schedule="linear") for s in (1.0, 1.0 + 1e-9)]
    one, through_null_rows = (generate(prior, labels, streams(1, range(6)), s) for s in settings)
    assert torch.equal(one, through_null_rows)


@pytest.mark.parametrize("name", ALL)
def test_what_is_told_of_the_way_sums_to_one(name, random_prior):
    parts = []
    generate(random_prior(name), None, streams(0, range(2)), Settings.plain(), tick=parts.append)
    assert sum(parts) == pytest.approx(1) and min(parts) > 0


@pytest.mark.parametrize("name", ALL)
@every_kind
def test_temperature_zero_is_the_same_for_every_seed(name, layout, num_classes, random_prior):
    prior = random_prior(name, layout, num_classes)
    labels = torch.full((2,), max(0, num_classes - 1))
    found = [generate(prior, labels, streams(s, range(2)), Settings(temperature=0.0)) for s in (0, 1)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("name", ["pixelcnn", "transformer", "chain", "masked"])
def test_weights_that_are_nan_are_reported_where_levels_have_unequal_codebooks(name, random_prior):
    prior = random_prior(name)
    for parameter in prior.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        generate(prior, None, streams(0, range(3)), Settings.plain())
