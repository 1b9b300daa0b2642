"""Codes of very large codebooks as several sub-tokens each, so that no softmax is over the whole codebook."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from stage2_prior.priors.base import Prior
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError


@lru_cache
def factors(codebook_size: int, largest: int) -> tuple[int, ...]:
    """The fewest factors of a codebook size that are none above `largest`, the most even of these, falling.

    Raises:
        UserError: there are none.
    """
    best: tuple[int, ...] = ()

    def search(rest: int, bound: int, chosen: tuple[int, ...]) -> None:
        nonlocal best
        if rest == 1:
            if not best or (len(chosen), max(chosen)) < (len(best), max(best)):
                best = chosen
            return
        if best and len(chosen) + 1 > len(best):
            return
        for factor in range(min(bound, rest), 1, -1):
            if rest % factor == 0:
                search(rest // factor, factor, (*chosen, factor))

    search(codebook_size, largest, ())
    if not best:
        raise UserError(
            f"codebook_size {codebook_size} is no product of numbers up to largest_softmax, {largest}; raise "
            f"stage2_prior's largest_softmax to {codebook_size}, or choose another codebook size"
        )
    return best


def split_layout(layout: CodeLayout, largest: int) -> CodeLayout:
    """The layout in which each code of a codebook above `largest` is several, at further depths of its position."""
    levels = []
    for level in layout.levels:
        parts = tuple(p for size in level.depth_sizes for p in (factors(size, largest) if size > largest else (size,)))
        even = len(set(parts)) == 1
        levels.append(Level(level.height, level.width, len(parts), max(parts), None if even else parts))
    return CodeLayout(layout.image_shape, tuple(levels))


class SubTokens(Prior):
    """A prior over codes that is one over their sub-tokens: exact where that is, since each code is one such sequence.

    Attributes:
        inner: the prior over sub-tokens, whose layout has them at further depths.
    """

    def __init__(self, layout: CodeLayout, inner: Prior) -> None:
        super().__init__(layout, inner.num_classes, inner.first)
        self.inner, self.trained, self.exact, self.noise = inner, inner.trained, inner.exact, inner.noise
        self.uses_labels = inner.uses_labels
        sizes = inner.layout.codebook_sizes
        weights, counts = torch.ones_like(sizes), []
        place = 0
        for size in layout.codebook_sizes.tolist():
            end = place
            while math.prod(sizes[place:end].tolist()) < size:
                end += 1
            end = max(end, place + 1)
            counts.append(end - place)
            weights[place:end] = torch.tensor([math.prod(sizes[i + 1 : end].tolist()) for i in range(place, end)])
            place = end
        self.ends = [0, *accumulate(counts)]  # sub-tokens of the first n codes
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        for name, tensor in (("sizes", sizes), ("weights", weights), ("owner", owner)):
            self.register_buffer(name, tensor, persistent=False)

    def split(self, tokens: Tensor) -> Tensor:
        """Codes (B, n) of whole levels to sub-tokens (B, n'), the most significant first."""
        values = self.spread(tokens)
        return values // self.weights[: values.shape[1]] % self.sizes[: values.shape[1]]

    def spread(self, values: Tensor) -> Tensor:
        """Something of each code (B, n), of whole levels, for each of its sub-tokens: (B, n')."""
        return values[:, self.owner[: self.ends[values.shape[1]]]]

    def join(self, subtokens: Tensor) -> Tensor:
        """Sub-tokens (B, N') to codes (B, N)."""
        return self._gather(subtokens * self.weights)

    def _gather(self, values: Tensor) -> Tensor:
        """Sums over each code's sub-tokens: (B, N') -> (B, N)."""
        sums = values.new_zeros(len(values), self.layout.num_tokens)
        return sums.index_add(1, self.owner[-values.shape[1] :], values)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        self.inner.fit((self.split(tokens), labels) for tokens, labels in batches)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        return self._gather(self.inner.nll(self.split(tokens), labels))[:, self.given :]

    def forward(self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """The training loss, nats a code."""
        return self.inner(self.split(tokens), labels, noise) * (self.inner.own_tokens / self.own_tokens)

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        nats, variance = self.inner.estimate(self.split(tokens), labels, again)
        return self._gather(nats)[:, self.given :], variance

    def measured_at_once(self, batch_size: int) -> int:
        return self.inner.measured_at_once(batch_size)

    def checkpoint_gradients(self) -> None:
        self.inner.checkpoint_gradients()
