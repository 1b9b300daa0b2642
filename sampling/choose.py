"""Logits and a uniform number to a token: guidance, temperature, top-k, top-p, min-p, inverse CDF. Pure functions."""

from __future__ import annotations

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance of logits (B, V): u + s·(c - u); a value impossible in either stays impossible.

    Source: Ho and Salimans 2022, equation 6, with s = 1 + w, on logits.
    """
    impossible = conditional.isneginf() | unconditional.isneginf()
    guided = unconditional + scale * (conditional - unconditional)
    return guided.masked_fill(impossible, -torch.inf)


def probabilities(
    logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> torch.Tensor:
    """Logits (B, V) to float64 probabilities (B, V) after the filters, in the order temperature, top-k, top-p, min-p.

    Each filter sees what the ones before it left, renormalised. `top_k` keeps the k likeliest values (of equals, the
    lower ones); `top_p` the fewest likeliest values whose mass reaches p; `min_p` those with at least min_p times the
    likeliest value's probability. None switches a filter off. Temperature must be above 0.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p); Nguyen et al. 2024 (min-p).
    """
    logits = logits.double()
    if temperature != 1:  # the maximum first, so that a tiny temperature cannot overflow
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
    """The first value whose cumulative probability passes u; never one of probability 0.

    Args:
        p: float64 (B, V), need not sum to exactly 1.
        uniforms: float64 (B,) in [0, 1).

    Returns:
        int64 (B,).
    """
    # Where p is 0 the sum is taken for 0: rounding may lift a parallel sum there. The largest sum passes any u below 1;
    # where p is NaN nothing does, and 0 is chosen, since any codebook has it.
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
    """Pick one token a row: int64 (B,) from logits (B, V) and uniforms float64 (B,) in [0, 1).

    Temperature 0 is the likeliest token, whatever the filters and the uniforms.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return inverse_cdf(probabilities(logits, temperature, top_k, top_p, min_p), uniforms)
