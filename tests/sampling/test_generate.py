"""The decoding loop against recomputation, with every real prior and one of plain tables."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import recomputed
import torch

from sampling.choose import choose, guide
from sampling.generate import Streams, generate
from sampling.settings import Settings
from stage2_prior.priors.any_order import AnyOrder
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.next_scale import NextScale
from stage2_prior.priors.subtokens import SubTokens
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


def streams(seed: int, indices: range) -> Streams:
    return Streams(seed, tuple(indices), torch.device("cpu"))


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


def links_of(prior):
    """The priors that decode a prior's levels, coarsest first."""
    return list(prior.links) if isinstance(prior, Chain) else [prior]


def guided(logits, prior, labels, scale):
    """`logits(labels)`, and where there is guidance also those of the null label."""
    if scale == 1 or not prior.num_classes:
        return logits(labels)
    return guide(logits(labels), logits(torch.full_like(labels, prior.num_classes)), scale)


@torch.no_grad()
def recompute(prior, labels, settings, given=None, seed=1):
    """The oracle: codes link by link, from all that came before, guidance in two passes."""
    tokens = torch.zeros(len(labels), 0, dtype=torch.int64)
    for link in links_of(prior):
        inner = link.inner if isinstance(link, SubTokens) else link
        joined, forced = tokens, torch.full((len(labels), link.layout.num_tokens), -1)
        if given is not None:
            forced = given[:, : link.layout.num_tokens]
        if isinstance(link, SubTokens):
            tokens = link.split(tokens)
            forced = torch.where(link.spread(forced) < 0, -1, link.split(forced.clamp_min(0)))
        count = prior.layout.num_tokens - 1  # where the link's own codes stand among all codes, from 0 to 1
        span = (link.given_tokens / count, (link.layout.num_tokens - 1) / count)
        ways = {Masked: masked_tokens, NextScale: tokens_by_scale, AnyOrder: recomputed.drawn}
        way = ways.get(type(inner), tokens_in_order)
        tokens = way(inner, tokens, labels, settings, forced, seed, span)
        if isinstance(link, SubTokens):
            tokens = torch.cat([joined, link.join(tokens)[:, joined.shape[1] :]], 1)
    return tokens


def moment_of(span, number, count):
    return span[0] + (span[1] - span[0]) * number / (count - 1) if count > 1 else span[1]


def tokens_in_order(prior, tokens, labels, settings, given, seed, span):
    """Every token by `logits` of the whole sequence, of which it sees what is before it."""
    own = prior.layout.num_tokens - prior.given_tokens
    uniforms = streams(seed, range(len(labels))).uniforms(own, *([prior.first] if prior.first else []))
    for number, place in enumerate(range(prior.given_tokens, prior.layout.num_tokens)):
        whole = torch.cat([tokens, torch.zeros(len(labels), prior.layout.num_tokens - place, dtype=torch.int64)], 1)
        level = prior.layout.places[place, 0].item()
        scale = settings.scale(level, moment_of(span, number, own))
        logits = guided(lambda y, whole=whole, at=number: prior.logits(whole, y)[:, at], prior, labels, scale)
        token = choose(logits, uniforms[:, number], **settings.filters(level))
        token = torch.where(given[:, place] >= 0, given[:, place], token)
        tokens = torch.cat([tokens, token[:, None]], 1)
    return tokens


def tokens_by_scale(prior, tokens, labels, settings, given, seed, span):
    """Every token by `logits` of the whole sequence, of which it sees the coarser scales; one scale after another."""
    own = prior.layout.num_tokens - prior.given_tokens
    uniforms = streams(seed, range(len(labels))).uniforms(own, *([prior.first] if prior.first else []))
    whole = torch.cat([tokens, torch.zeros(len(labels), own, dtype=torch.int64)], 1)
    places = prior.layout.places.tolist()
    scales = sorted({(level, depth) for level, _, _, depth in places if level >= prior.first})
    for number, (level, depth) in enumerate(scales):
        scale = settings.scale(level, moment_of(span, number, len(scales)))
        logits = guided(lambda y: prior.logits(whole, y), prior, labels, scale)
        for place in (p for p, found in enumerate(places) if (found[0], found[3]) == (level, depth)):
            here = place - prior.given_tokens
            token = choose(logits[:, here], uniforms[:, here], **settings.filters(level))
            whole[:, place] = torch.where(given[:, place] >= 0, given[:, place], token)
    return whole


def masked_tokens(prior, tokens, labels, settings, given, seed, span):
    """MaskGIT's rule, an image, a code and a rank at a time, by `predict`."""
    whole = torch.cat([tokens, given[:, prior.given_tokens :]], 1)
    steps, own = min(settings.decoding_steps, prior.own_tokens), prior.own_tokens
    for i, image in enumerate(whole):
        at_first = int((image[prior.given_tokens :] < 0).sum())
        for step in range(steps):
            unknown, known = image[prior.given_tokens :] < 0, image.clamp_min(0)[None]
            asked = {int(labels[i]), int(labels[i]) if settings.guidance_scale == 1 else prior.num_classes}
            predicted = {y: prior.predict(known, unknown[None], torch.tensor([y]))[0] for y in asked}
            numbers = streams(seed, range(i, i + 1)).uniforms(2 * own, "masked", prior.first, step)[0]
            confidences = {}
            for place in unknown.nonzero()[:, 0].tolist():
                level = prior.layout.places[prior.given_tokens + place, 0].item()
                scale = settings.scale(level, moment_of(span, step, steps))
                here = guided(lambda y, at=place, of=predicted: of[int(y)][at], prior, labels[i : i + 1], scale)
                code = choose(here[None], numbers[place : place + 1], **settings.filters(level)).item()
                noise = -math.log(-math.log(numbers[own + place].item()))
                annealed = settings.choice_temperature * (1 - (step + 1) / steps)
                if settings.filters(level)["temperature"] == 0:
                    annealed = 0.0
                confidences[place] = (here.log_softmax(-1)[code].item() + annealed * noise, code)
            left = min(math.floor(math.cos(math.pi / 2 * (step + 1) / steps) * at_first), len(confidences) - 1)
            surest = sorted(confidences, key=lambda place: -confidences[place][0])
            for place in surest[: len(surest) - max(0, left) if step + 1 < steps else None]:
                image[prior.given_tokens + place] = confidences[place][1]
    return whole


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
