"""How an any-order prior draws: in which orders, after what is given, and many at a time."""

from __future__ import annotations

import pytest
import recomputed
import torch
from recomputed_tokens import streams

from sampling.generate import BatchSampler, generate
from sampling.settings import Settings
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.drawing import Part
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError

LAYOUTS = {
    "scales": CodeLayout((1, 8, 8), (Level(1, 1, 1, 5), Level(2, 2, 1, 5), Level(3, 3, 1, 5))),
    "two levels of unequal K": CodeLayout((1, 8, 8), (Level(1, 2, 1, 3), Level(2, 2, 2, 6))),
    "residual depth 4": CodeLayout((1, 4, 8), (Level(1, 3, 4, 4, (4, 3, 4, 2)),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(2, 3, 1, 4),)),
}
every_kind = pytest.mark.parametrize(
    ("layout", "num_classes"),
    [(layout, classes) for layout in LAYOUTS.values() for classes in (0, 3)],
    ids=[f"{name}, {classes} classes" for name in LAYOUTS for classes in (0, 3)],
)
in_every_order = pytest.mark.parametrize("order", ["layout", "random", "parallel"])


@pytest.fixture
def make(prior_arguments):
    def prior_of(layout: CodeLayout, num_classes: int):
        torch.manual_seed(0)
        params = prior_arguments("any_order")
        config = {"name": "any_order", "params": params, "layout": layout.to_json(), "num_classes": num_classes}
        prior = build_prior(config).double().eval()
        for parameter in prior.parameters():
            parameter.data.normal_(0, 0.5)
        return prior

    return prior_of


def classes_of(count: int, num_classes: int) -> torch.Tensor:
    return torch.arange(count) % max(1, num_classes)


def some_positions(layout: CodeLayout, count: int, same: bool) -> torch.Tensor:
    """bool (count, N): positions with all their codes, the same for all images or not; none of the first image's."""
    grids = []
    for level in layout.levels:
        chosen = torch.rand(1 if same else count, level.height, level.width, 1) < 0.5
        grids.append(chosen.expand(count, -1, -1, level.depth))
    known = layout.flatten(grids)
    known[0] = False
    return known


@in_every_order
@pytest.mark.parametrize("scale", [1.0, 2.0])
@every_kind
def test_cached_tokens_are_those_of_recomputation_with_and_without_given_ones(order, scale, layout, num_classes, make):
    prior, labels = make(layout, num_classes), classes_of(5, num_classes)
    settings = Settings(guidance_scale=scale, guidance_schedule="linear", order=order, decoding_steps=3)
    nothing = torch.full((5, layout.num_tokens), -1)
    whole = generate(prior, labels, streams(1, range(5)), settings)
    assert torch.equal(whole, recomputed.drawn(prior, nothing[:, :0], labels, settings, nothing, 1))
    assert (whole < layout.codebook_sizes).all()
    for same in (True, False):
        known = some_positions(layout, 5, same)
        given = torch.where(known, (whole + 1) % layout.codebook_sizes, -1)
        found = generate(prior, labels, streams(2, range(5)), settings, given)
        assert torch.equal(found[known], given[known])
        assert torch.equal(found, recomputed.drawn(prior, nothing[:, :0], labels, settings, given, 2))


@in_every_order
@every_kind
def test_an_image_is_the_same_in_any_batch_whatever_is_given_of_the_others(order, layout, num_classes, make):
    prior, labels = make(layout, num_classes), classes_of(64, num_classes)
    settings = Settings(guidance_scale=2.0, order=order, decoding_steps=3)
    whole = generate(prior, labels, streams(7, range(64)), settings)
    given = torch.where(some_positions(layout, 64, False), whole, -1)
    together = generate(prior, labels, streams(8, range(64)), settings, given)
    for i in (0, 1, 30, 63):
        one = slice(i, i + 1)
        assert torch.equal(generate(prior, labels[one], streams(7, range(i, i + 1)), settings)[0], whole[i])
        alone = generate(prior, labels[one], streams(8, range(i, i + 1)), settings, given[one])
        assert torch.equal(alone[0], together[i])


@in_every_order
@every_kind
def test_guidance_by_one_is_no_guidance(order, layout, num_classes, make):
    prior, labels = make(layout, num_classes), classes_of(12, num_classes)
    one, through_null_rows = (
        generate(prior, labels, streams(1, range(12)), Settings(guidance_scale=scale, order=order, decoding_steps=2))
        for scale in (1.0, 1.0 + 1e-9)
    )
    assert torch.equal(one, through_null_rows)


class Noting(BatchSampler):
    """A sampler that always chooses code 0, and keeps the logits that it chose from."""

    def __init__(self, count: int, settings: Settings, levels: int) -> None:
        super().__init__(streams(0, range(count)), settings, levels, False, lambda share: None)
        self.logits: list[torch.Tensor] = []

    def choose(self, logits, uniforms, level):
        self.logits.append(logits)
        return torch.zeros(len(logits), dtype=torch.int64)


@in_every_order
@every_kind
@torch.no_grad()
def test_every_code_that_is_drawn_depends_on_every_given_one(order, layout, num_classes, make):
    prior, labels = make(layout, num_classes), torch.zeros(1, dtype=torch.int64)
    settings = Settings(order=order, decoding_steps=2)
    sizes, known = layout.codebook_sizes, torch.zeros(layout.num_tokens, dtype=torch.bool)
    last = layout.levels[-1].depth
    known[-2 * last :] = True  # the last two positions of the finest level: all else comes before them in the layout

    def logits_with(given: torch.Tensor) -> torch.Tensor:
        sampler = Noting(1, settings, len(layout.levels))
        prior.decode(sampler, labels, given[None, :0], torch.where(known, given, -1)[None], Part())
        return torch.cat(sampler.logits)

    given = torch.zeros(layout.num_tokens, dtype=torch.int64)
    before = logits_with(given)
    assert len(before) == layout.num_tokens - 2 * last
    for place in known.nonzero()[:, 0].tolist():
        changed = given.clone()
        changed[place] = (given[place] + 1) % sizes[place]
        difference = (logits_with(changed) - before).nan_to_num(0).abs().amax(-1)
        assert (difference > 1e-9).all(), place


@torch.no_grad()
def test_random_orders_differ_between_images_and_seeds_and_not_between_runs(make, monkeypatch):
    prior, found = make(LAYOUTS["rectangle"], 0), []
    begin = prior._begin
    monkeypatch.setattr(
        prior, "_begin", lambda labels, order, known: found.append(order) or begin(labels, order, known)
    )
    for seed in (1, 1, 2):
        generate(prior, None, streams(seed, range(8)), Settings(order="random"))
    assert torch.equal(found[0], found[1]) and len(found[0].unique(dim=0)) > 4
    assert not torch.equal(found[0], found[2])


@torch.no_grad()
def test_what_is_given_goes_in_at_once_and_images_with_one_mask_are_drawn_together(make, monkeypatch):
    layout = LAYOUTS["scales"]
    prior, calls = make(layout, 0), []
    decoder = prior.transformer.decoder

    def noted(*shape: int):
        made = decoder(*shape)
        extend = made.extend
        made.extend = lambda x, *seen: calls.append(tuple(x.shape[:2])) or extend(x, *seen)
        return made

    monkeypatch.setattr(prior.transformer, "decoder", noted)
    given = torch.where(torch.arange(14) >= 6, 1, -1).expand(5, -1)
    generate(prior, None, streams(1, range(5)), Settings.plain(), given)
    assert calls == [(5, 8)] + [(5, 1)] * 6
    calls.clear()
    generate(prior, None, streams(1, range(5)), Settings(order="parallel", decoding_steps=2))
    # A pass takes the codes that were drawn in the one before, and those that it asks for.
    assert calls == [(5, 1), (5, 1 + 2), (5, 2 + 2), (5, 2 + 3), (5, 3 + 6)]


@in_every_order
def test_weights_that_are_nan_are_reported(order, make):
    prior = make(LAYOUTS["two levels of unequal K"], 2)
    for parameter in prior.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        generate(prior, None, streams(0, range(3)), Settings(order=order))


@in_every_order
@pytest.mark.parametrize("given", [None, 0.5, 1.0])
def test_what_is_told_of_the_way_sums_to_one(order, given, make):
    layout, parts = LAYOUTS["two levels of unequal K"], []
    forced = None if given is None else torch.where(torch.rand(6, layout.num_tokens) < given, 0, -1)
    generate(make(layout, 0), None, streams(0, range(6)), Settings(order=order), forced, parts.append)
    assert sum(parts) == pytest.approx(1) and min(parts) > 0
