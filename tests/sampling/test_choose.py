"""From logits to a token: exact frequencies, filters against brute force, nothing impossible is ever chosen."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sampling.choose import choose, guide, inverse_cdf, probabilities

OFF = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}


def brute_force(logits: list[float], temperature: float, top_k, top_p, min_p) -> list[float]:
    """The definitions, one value at a time, in plain Python."""

    def normalised(weights: dict[int, float]) -> dict[int, float]:
        total = math.fsum(weights.values())
        return {v: w / total for v, w in weights.items()}

    peak = max(logits)
    kept = normalised({v: math.exp((x - peak) / temperature) for v, x in enumerate(logits) if x != -math.inf})
    if top_k is not None:
        kept = normalised({v: kept[v] for v in sorted(kept, key=lambda v: (-kept[v], v))[:top_k]})
    if top_p is not None:
        chosen, mass = [], 0.0
        for value in sorted(kept, key=lambda v: (-kept[v], v)):
            if mass >= top_p:
                break
            chosen.append(value)
            mass += kept[value]
        kept = normalised({v: kept[v] for v in chosen})
    if min_p is not None:
        bound = min_p * max(kept.values())
        kept = normalised({v: p for v, p in kept.items() if p >= bound})
    return [kept.get(v, 0.0) for v in range(len(logits))]


def test_an_even_spread_of_uniforms_gives_the_probabilities_themselves():
    p = torch.tensor([0.1, 0.0, 0.25, 0.4, 0.0, 0.25], dtype=torch.float64)
    count = 20000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = choose(p.log().expand(count, -1), uniforms, **OFF)
    share = torch.bincount(tokens, minlength=6).double() / count
    assert (share - p).abs().max() <= 1 / count


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), list(itertools.product([None, 1, 3, 50], [None, 0.01, 0.6, 1.0], [None, 0.0, 0.2]))
)
def test_filters_equal_their_definition(temperature, top_k, top_p, min_p):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    logits[0, 3:] = -torch.inf
    logits[1, 2] = logits[1, 4] = logits[1].max()  # equals
    found = probabilities(logits, temperature, top_k, top_p, min_p)
    for row, values in zip(found, logits.tolist(), strict=True):
        assert row.tolist() == pytest.approx(brute_force(values, temperature, top_k, top_p, min_p), abs=1e-12)


def test_the_ends_of_the_unit_interval_choose_possible_values():
    p = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    last = math.nextafter(1.0, 0.0)
    for scale in (1.0, 3.0, 1 / 3, 1e-300):
        assert inverse_cdf(p * scale, torch.tensor([0.0], dtype=torch.float64)).item() == 1
        assert inverse_cdf(p * scale, torch.tensor([last], dtype=torch.float64)).item() == 3


def test_a_sum_that_rounding_lifted_at_an_impossible_value_does_not_choose_it(monkeypatch):
    """As sums in parallel may: they need not rise all the way."""
    p = torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: torch.tensor([[0.5, 0.75, 1.0, 1.25]]).double())
    for u, expected in ((0.0, 0), (0.49, 0), (0.5, 2), (0.7, 2), (1 - 1e-12, 2)):
        assert inverse_cdf(p, torch.tensor([u], dtype=torch.float64)).item() == expected


def test_impossible_values_are_never_chosen():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 9, generator=generator) * 30
    logits[torch.rand(4000, 9, generator=generator) < 0.6] = -torch.inf
    logits[:, 5] = 0.0
    uniforms = torch.rand(4000, generator=generator, dtype=torch.float64)
    for settings in (OFF, OFF | {"top_k": 4}, OFF | {"top_p": 0.9}, OFF | {"min_p": 0.1}, OFF | {"temperature": 0.0}):
        tokens = choose(logits, uniforms, **settings)
        assert logits.gather(1, tokens[:, None]).isfinite().all()


def test_temperature_zero_is_the_likeliest_whatever_the_uniforms():
    logits = torch.tensor([[0.0, 2.0, 2.0, -1.0]])
    for u in (0.0, 0.5, 0.999):
        assert choose(logits, torch.tensor([u], dtype=torch.float64), 0.0, None, 0.5, None).item() == 1


def test_a_tiny_temperature_is_nearly_zero_and_not_nan():
    logits = torch.tensor([[1.0, 5.0, -torch.inf, 4.999]])
    assert probabilities(logits, 1e-300, None, None, None).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_guidance_is_the_formula_and_keeps_the_impossible():
    c = torch.tensor([[1.0, -2.0, -torch.inf, 0.5, -torch.inf]])
    u = torch.tensor([[0.5, 1.0, -torch.inf, -torch.inf, 3.0]])
    for scale in (0.0, 0.5, 3.0):
        found = guide(c, u, scale)
        assert found[0, :2].tolist() == pytest.approx([0.5 + scale * 0.5, 1.0 - scale * 3.0])
        assert found[0, 2:].isneginf().all()
