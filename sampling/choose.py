"""Chooses a token from logits and a random number: guidance, temperature, filters, inverse CDF. Pure functions."""

from __future__ import annotations

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: logits u + s · (c - u), (B, V). A value that is impossible in u or c stays impossible.

    Args:
        conditional: c, (B, V), given the label.
        unconditional: u, (B, V), given the null label.
        scale: s, at least 0. 1 gives c.

    Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", equation 6 with s = 1 + w, applied to logits.
    """
    impossible = conditional.isneginf() | unconditional.isneginf()
    guided = unconditional + scale * (conditional - unconditional)
    return guided.masked_fill(impossible, -torch.inf)


def probabilities(
    logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> torch.Tensor:
    """Probabilities, float64 (B, V), from logits (B, V).

    Temperature is applied first, then top-k, top-p and min-p. Each filter works on the probabilities that the filters
    before it left, which are scaled to sum to 1. None switches a filter off.

    Args:
        temperature: above 0; logits are divided by it.
        top_k: keeps the k likeliest values. Of equally likely ones, the lower values are kept.
        top_p: in (0, 1]. Keeps the fewest likeliest values whose probabilities sum to at least p.
        min_p: in [0, 1). Keeps the values with at least min_p times the probability of the likeliest one.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    logits = logits.double()
    if temperature != 1:  # the maximum is subtracted first, so that a tiny temperature does not overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    p = torch.softmax(logits, -1)
    if top_k is None and top_p is None and min_p is None:
        return p
    if top_k is not None or (top_p is not None and top_p < 1):
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        if top_k is not None:
            ordered[:, top_k:] = 0
            ordered = ordered / ordered.sum(-1, keepdim=True)
        if top_p is not None and top_p < 1:
            before = torch.nn.functional.pad(ordered.cumsum(-1)[:, :-1], (1, 0))
            ordered = ordered.masked_fill(before >= top_p, 0)
        p = torch.zeros_like(p).scatter_(-1, order, ordered)
    if min_p is not None:
        p = p.masked_fill(p < min_p * p.amax(-1, keepdim=True), 0)
    return p / p.sum(-1, keepdim=True)


def inverse_cdf(p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first value whose cumulative probability exceeds u, int64 (B,). A value of probability 0 is never chosen.

    Args:
        p: probabilities, float64 (B, V). They need not sum to exactly 1.
        uniforms: u, float64 (B,) in [0, 1).
    """
    # A sum that is computed in parallel may rise, by rounding, at a value of probability 0. Such sums are set to 0.
    # The largest sum exceeds u · (largest sum) for any u below 1. If p is NaN nothing does, and value 0 is chosen.
    cumulative = p.cumsum(-1).masked_fill_(p == 0, 0)
    passed = cumulative > uniforms[:, None] * cumulative.amax(-1, keepdim=True)
    return passed.byte().argmax(-1)


def choose(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> torch.Tensor:
    """Chooses one token for each row, int64 (B,).

    Args:
        logits: (B, V).
        uniforms: random numbers, float64 (B,) in [0, 1).
        temperature, top_k, top_p, min_p: see `probabilities`. Temperature 0 chooses the likeliest token, whatever the
            filters and the random numbers.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return inverse_cdf(probabilities(logits, temperature, top_k, top_p, min_p), uniforms)
