"""The prior `next_scale`: a distribution over whole scales, decoded one forward pass a scale."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stage2_prior.priors import next_scale
from stage2_prior.priors.build import build_prior, load_prior, prior_config
from stage2_prior.priors.decoding.scales import ScaleDecoder
from stage2_prior.priors.drawing import Part
from tessera.artifacts.models import save_model
from tessera.codes.layout import CodeLayout, Level

LAYOUTS = {
    "scales": CodeLayout((1, 8, 8), (Level(1, 1, 1, 2), Level(1, 2, 1, 2), Level(2, 2, 1, 2))),
    "two_levels": CodeLayout((3, 8, 4), (Level(2, 1, 1, 3), Level(4, 1, 1, 2))),
    "residual": CodeLayout((1, 4, 8), (Level(1, 2, 3, 2),)),
    "rectangle": CodeLayout((1, 8, 12), (Level(1, 2, 1, 2), Level(2, 3, 1, 2))),
    "unequal": CodeLayout((1, 8, 8), (Level(1, 1, 1, 5), Level(1, 2, 2, 3))),
    "one_level": CodeLayout((1, 8, 8), (Level(2, 2, 1, 4),)),
}
CASES = list(itertools.product(LAYOUTS, (0, 2)))


@pytest.fixture(params=CASES, ids=[f"{name}-{classes or 'no'}_classes" for name, classes in CASES])
def prior(request: pytest.FixtureRequest, make_stirred: Callable) -> nn.Module:
    name, classes = request.param
    return make_stirred("next_scale", LAYOUTS[name], classes).double()


class Drawing:
    """A sampler with a random stream for each image: guidance by a scale, tokens by inverse CDF at temperature 1."""

    def __init__(self, images: range, scale: float = 1.0) -> None:
        self.images, self.scale, self.moments, self.shares = images, scale, [], []

    def guided(self, levels) -> bool:
        return self.scale != 1

    def guide(self, logits: Tensor, level: int, moment: float) -> Tensor:
        self.moments.append(moment)
        label, null = logits.chunk(2)
        return torch.where(null.isfinite(), null + self.scale * (label - null), null)

    def uniforms(self, count: int, *purpose) -> Tensor:
        rows = [torch.Generator().manual_seed(100 + image) for image in self.images]
        return torch.stack([torch.rand(count, generator=row, dtype=torch.float64) for row in rows])

    def choose(self, logits: Tensor, uniforms: Tensor, level: int) -> Tensor:
        return (logits.double().softmax(-1).cumsum(-1) < uniforms[..., None]).sum(-1)

    def advance(self, share: float) -> None:
        self.shares.append(share)


def draw(prior: nn.Module, sampler: Drawing, forced: Tensor | None = None, coarser: Tensor | None = None) -> Tensor:
    count = len(sampler.images)
    labels = torch.tensor([image % (prior.num_classes + 1) for image in sampler.images])
    forced = torch.full((count, prior.layout.num_tokens), -1) if forced is None else forced
    coarser = torch.zeros(count, 0, dtype=torch.int64) if coarser is None else coarser
    return prior.decode(sampler, labels, coarser, forced, Part())


def recomputed(prior: nn.Module, sampler: Drawing, forced: Tensor) -> Tensor:
    """What `draw` must give: each scale from `logits` of the whole sequence, in which finer scales are 0."""
    labels = torch.tensor([image % (prior.num_classes + 1) for image in sampler.images])
    found, uniforms = torch.zeros_like(forced), sampler.uniforms(forced.shape[1])
    for here in (scale.places for scale in prior.scales):
        chosen = sampler.choose(prior.logits(found, labels)[:, here], uniforms[:, here], 0)
        found[:, here] = torch.where(forced[:, here] >= 0, forced[:, here], chosen)
    return found


def test_probabilities_of_all_sequences_sum_to_one(prior) -> None:
    tokens = torch.tensor(list(itertools.product(*[range(k) for k in prior.layout.codebook_sizes.tolist()])))
    for label in range(prior.num_classes + 1):
        nats = prior.nll(tokens, torch.full((len(tokens),), label)).sum(1)
        assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_a_token_changes_the_logits_of_all_later_scales_and_of_no_other(prior, make_tokens) -> None:
    layout, tokens = prior.layout, make_tokens(prior.layout, 1)
    scale_of = torch.empty(layout.num_tokens, dtype=torch.int64)
    for number, scale in enumerate(prior.scales):
        scale_of[scale.places] = number
    levels = layout.places[:, 0] * 100 + layout.places[:, 3]  # a scale is a depth of a level
    assert torch.equal(scale_of, levels.unique(return_inverse=True)[1])
    before = prior.logits(tokens, None)
    for place, size in enumerate(layout.codebook_sizes.tolist()):
        changed = tokens.clone()
        changed[:, place] = (tokens[:, place] + 1) % size
        difference = (prior.logits(changed, None) - before).nan_to_num(0).abs().amax((0, 2))
        assert torch.equal(difference > 1e-12, scale_of > scale_of[place]), (place, difference)


def test_decoding_gives_the_tokens_of_full_recomputation_one_pass_a_scale(prior, monkeypatch) -> None:
    calls = []
    original = ScaleDecoder.extend
    monkeypatch.setattr(ScaleDecoder, "extend", lambda self, x: calls.append(x.shape[1]) or original(self, x))
    sampler = Drawing(range(6))
    found = draw(prior, sampler)
    assert calls == [scale.grid[0] * scale.grid[1] for scale in prior.scales]
    assert sum(sampler.shares) == pytest.approx(1) and (found < prior.layout.codebook_sizes).all()
    assert torch.equal(found, recomputed(prior, sampler, torch.full_like(found, -1)))


def test_decoding_gives_the_teacher_forced_logits(prior, make_tokens) -> None:
    tokens = make_tokens(prior.layout, 5)
    labels = torch.arange(5) % (prior.num_classes + 1)
    for precision, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):  # float32 is what is laid out for MKL
        prior.to(precision)
        expected, logits_of = prior.logits(tokens, labels), prior.scale_logits(labels)
        for number, scale in enumerate(prior.scales):
            found = logits_of(number, tokens)
            torch.testing.assert_close(found, expected[:, scale.places], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_an_image_does_not_depend_on_its_batch(prior, scale) -> None:
    together = draw(prior, Drawing(range(64), scale))
    for image in (0, 17, 63):
        assert torch.equal(draw(prior, Drawing(range(image, image + 1), scale)), together[image : image + 1])


def test_guidance_of_1_is_none_and_rises_from_scale_to_scale(prior) -> None:
    one = Drawing(range(8), 1.0)
    one.guided = lambda levels: True
    assert torch.equal(draw(prior, one), draw(prior, Drawing(range(8))))
    count = len(prior.scales)
    assert one.moments == [number / (count - 1) if count > 1 else 1.0 for number in range(count)]


def test_given_tokens_stay_and_finer_scales_see_them(prior, make_tokens) -> None:
    free = draw(prior, Drawing(range(40)))
    first = prior.scales[0].places
    forced = torch.full_like(free, -1)
    forced[:, first] = (free[:, first] + 1) % prior.layout.codebook_sizes[first]
    found = draw(prior, Drawing(range(40)), forced)
    assert torch.equal(found[:, first], forced[:, first])
    assert torch.equal(found, recomputed(prior, Drawing(range(40)), forced))
    whole = make_tokens(prior.layout, 40)
    assert torch.equal(draw(prior, Drawing(range(40)), whole), whole)


@pytest.mark.parametrize("name", ["scales", "two_levels", "unequal"])
def test_a_link_of_a_chain_is_given_the_coarser_levels(name, prior_arguments, make_tokens) -> None:
    layout, params = LAYOUTS[name], prior_arguments("next_scale")
    config = {"name": "next_scale", "params": params, "layout": layout.to_json(), "num_classes": 2}
    prior = build_prior(config, first=1).double().eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(0, 0.5)
    given, tokens = prior.given_tokens, make_tokens(layout, 4)
    every = torch.tensor(list(itertools.product(*[range(k) for k in layout.codebook_sizes[given:].tolist()])))
    whole = torch.cat([tokens[:1, :given].expand(len(every), -1), every], 1)
    assert prior.nll(whole, None).sum(1).neg().exp().sum().item() == pytest.approx(1, abs=1e-9)
    sampler = Drawing(range(4))
    found = draw(prior, sampler, coarser=tokens[:, :given])
    assert torch.equal(found[:, :given], tokens[:, :given]) and sum(sampler.shares) == pytest.approx(1)
    again, labels = tokens.clone(), torch.arange(4) % 3
    for scale in prior.scales:
        if scale.level:
            own = slice(scale.places.start - given, scale.places.stop - given, scale.places.step)
            logits = prior.logits(again, labels)[:, own]
            again[:, scale.places] = sampler.choose(logits, sampler.uniforms(prior.own_tokens)[:, own], 0)
    assert torch.equal(found, again)


def test_a_published_prior_loads_with_the_same_logits(prior, make_tokens, tmp_path) -> None:
    save_model(tmp_path / "prior", "prior", prior_config(prior), prior.float().state_dict(), {})
    loaded, _ = load_prior(tmp_path / "prior")
    tokens = make_tokens(prior.layout, 3)
    assert torch.equal(loaded.logits(tokens, None), prior.logits(tokens, None)) and loaded.exact


def test_checkpointing_and_a_copy_in_bf16_change_little(prior, make_tokens) -> None:
    prior, tokens = prior.float(), make_tokens(prior.layout, 3)
    before = prior.logits(tokens, None)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(0.2)
        expected, labels = prior.logits(tokens, None), torch.full((3,), prior.num_classes)
        logits_of = prior.lowered(torch.bfloat16).scale_logits(labels)
        for number, scale in enumerate(prior.scales):
            found = logits_of(number, tokens)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected[:, scale.places], rtol=0.05, atol=0.05)
        for parameter in prior.parameters():
            parameter.div_(0.2)
    prior.checkpoint_gradients()
    prior(tokens, None).backward()
    torch.testing.assert_close(prior.logits(tokens, None), before, rtol=1e-3, atol=1e-3)
    assert prior.ends.token.weight.grad.abs().sum() > 0


def test_memory_of_a_sequence_is_at_least_its_keys_and_values(make_fresh) -> None:
    layout = CodeLayout((1, 64, 64), (Level(4, 4, 1, 8), Level(8, 8, 1, 8)))
    prior = make_fresh("next_scale", layout, 0)
    kept = 2 * 2 * layout.num_tokens * 8 * 4  # keys and values of two layers of width 8 in float32
    assert kept < prior.decoding_bytes(torch.device("cpu"), 8) < 100 * kept
    assert next_scale.scales_of(layout)[1].rows == slice(16, 80)


def test_a_scale_is_told_the_sum_of_what_all_coarser_ones_say_at_its_places(
    make_stirred, make_tokens, monkeypatch
) -> None:
    prior = make_stirred("next_scale", CodeLayout((1, 8, 16), (Level(1, 2, 2, 3), Level(2, 4, 1, 3))), 0).double()
    told, original = [], prior._input
    monkeypatch.setattr(
        prior, "_input", lambda number, said, labels: told.append(said) or original(number, said, labels)
    )
    tokens = make_tokens(prior.layout, 3)
    prior.logits(tokens, None)
    table = prior.ends.token(prior.ends.rows(tokens))
    first = prior.ends.token.weight[prior.ends.special].expand(3, 1, 2, -1)
    second = first + table[:, 0:4:2].unflatten(1, (1, 2))
    assert torch.equal(told[0], first) and torch.equal(told[1], second)
    sums = second + table[:, 1:4:2].unflatten(1, (1, 2))
    left, right = sums[:, 0, 0], sums[:, 0, 1]
    columns = [left, 0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right, right]
    torch.testing.assert_close(told[2], torch.stack(columns, 1)[:, None].expand(-1, 2, -1, -1))
