"""The decoding loop against recomputation, with every real prior and one of plain tables."""

from __future__ import annotations

import math

import pytest
import torch

from common.codes import CodeLayout, Level
from sampling.choose import choose, guide
from sampling.generate import generate, image_uniforms
from stage2_prior.priors import PRIORS

LAYOUT = CodeLayout((1, 8, 8), (Level(1, 2, 1, 3), Level(2, 2, 2, 5)))
OFF = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "guidance_scale": 1.0}
PARAMETERS = {
    "uniform": {},
    "counts": {},
    "pixelcnn": {"layers": 2, "channels": 8, "kernel_size": 3, "dropout": 0.0},
    "transformer": {"architecture": "gpt2", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "extra": {}},
}


class Table:
    """Two tokens of two values; the second is more likely to repeat the first. Counts its calls."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.rows = num_classes, []

    def start(self, labels, context=None):
        self.rows.append(len(labels))
        return labels

    def step(self, labels, tokens):
        p = torch.tensor([0.3, 0.7]).expand(len(labels), 2)
        if tokens is not None:
            p = torch.where(tokens[:, None] == torch.arange(2), 0.9, 0.1)
        return p.double().log() + labels[:, None] * torch.tensor([0.0, 0.5])


def random_prior(name: str, num_classes: int = 3):
    """A prior of random weights in float64, where cached and full decoding cannot part at a rounding."""
    torch.manual_seed(0)
    prior = PRIORS[name](LAYOUT, num_classes, **PARAMETERS[name])
    for parameter in prior.parameters():
        parameter.data.normal_(0, 0.5)
    return prior.double().eval()


def recompute(prior, labels, uniforms, given=None, **settings):
    """The oracle: every token from the whole sequence before it, by `logits`, guidance in two passes."""
    scale = settings.pop("guidance_scale")
    tokens = torch.zeros(uniforms.shape, dtype=torch.int64)
    for place in range(tokens.shape[1]):
        with torch.no_grad():
            logits = prior.logits(tokens, labels)[:, place]
            if scale != 1:
                null = torch.full_like(labels, prior.num_classes)
                logits = guide(logits, prior.logits(tokens, null)[:, place], scale)
        tokens[:, place] = choose(logits, uniforms[:, place], **settings)
        if given is not None:
            tokens[:, place] = torch.where(given[:, place] >= 0, given[:, place], tokens[:, place])
    return tokens


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_cached_decoding_gives_the_tokens_of_recomputation(name, scale):
    prior, labels = random_prior(name), torch.arange(12) % 3
    uniforms = image_uniforms(0, range(12), LAYOUT.num_tokens)
    settings = OFF | {"guidance_scale": scale, "top_p": 0.95}
    tokens = generate(prior, labels, uniforms, **settings)
    assert torch.equal(tokens, recompute(prior, labels, uniforms, **settings))
    assert (tokens < LAYOUT.codebook_sizes).all()


@pytest.mark.parametrize("name", PRIORS)
def test_an_image_is_the_same_in_any_batch(name):
    prior, labels = random_prior(name), torch.arange(64) % 3
    settings = OFF | {"guidance_scale": 3.0}
    together = generate(prior, labels, image_uniforms(7, range(64), LAYOUT.num_tokens), **settings)
    for i in (0, 5, 63):
        alone = generate(prior, labels[i : i + 1], image_uniforms(7, [i], LAYOUT.num_tokens), **settings)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", ["pixelcnn", "transformer"])
def test_given_tokens_are_kept_and_the_others_answer_to_them(name):
    prior, labels = random_prior(name), torch.arange(8) % 3
    uniforms = image_uniforms(1, range(8), LAYOUT.num_tokens)
    given = torch.full((8, LAYOUT.num_tokens), -1)
    given[:, 0], given[:, 4] = 2, 1
    tokens = generate(prior, labels, uniforms, **OFF, given=given)
    assert (tokens[:, 0] == 2).all() and (tokens[:, 4] == 1).all()
    assert torch.equal(tokens, recompute(prior, labels, uniforms, given, **OFF))


def test_frequencies_of_sequences_are_their_probabilities():
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    tokens = generate(Table(0), None, torch.cartesian_prod(grid, grid), **OFF)
    share = torch.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4).double() / len(tokens)
    assert share.tolist() == pytest.approx([0.27, 0.03, 0.07, 0.63], abs=1e-9)


def test_guidance_one_runs_no_null_rows_and_is_no_guidance():
    uniforms = image_uniforms(0, range(50), 2)
    guided, plain = Table(2), Table(2)
    labels = torch.arange(50) % 2
    one = generate(plain, labels, uniforms, **OFF)
    near = generate(guided, labels, uniforms, **OFF | {"guidance_scale": 1.0 + 1e-12})
    assert plain.rows == [50] and guided.rows == [100]
    assert torch.equal(one, near)


def test_guidance_without_classes_is_skipped():
    prior = Table(0)
    generate(prior, None, image_uniforms(0, range(5), 2), **OFF | {"guidance_scale": 3.0})
    assert prior.rows == [5]


def test_temperature_zero_is_the_same_for_every_seed():
    prior, labels = random_prior("transformer"), torch.zeros(2, dtype=torch.int64)
    settings = OFF | {"temperature": 0.0}
    found = [generate(prior, labels, image_uniforms(s, range(2), LAYOUT.num_tokens), **settings) for s in (0, 1)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0][0], found[0][1])


def test_uniforms_belong_to_image_and_seed():
    first = image_uniforms(3, range(10), 6)
    assert first.dtype == torch.float64 and first.min() >= 0 and first.max() < 1
    assert torch.equal(first[4:7], image_uniforms(3, [4, 5, 6], 6))
    assert torch.equal(first[:, :4], image_uniforms(3, range(10), 4))
    assert not torch.equal(first, image_uniforms(4, range(10), 6))
    assert len(first.unique()) == first.numel()


def test_uniforms_are_uniform():
    values = image_uniforms(0, range(2000), 4).flatten()
    assert values.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / values.numel()))


def test_a_prior_that_breaks_is_reported_not_sampled():
    prior = Table(0)
    prior.step = lambda labels, tokens: torch.full((len(labels), 2), torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        generate(prior, None, image_uniforms(0, range(3), 2), **OFF)
