"""Models codes of very large codebooks as several sub-tokens each, so that no softmax is over the whole codebook."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from stage2_prior.priors.base import Prior
from stage2_prior.priors.drawing import Part, Sampler
from tessera.codes.layout import CodeLayout, Level
from tessera.errors import UserError


@lru_cache
def factors(codebook_size: int, largest: int) -> tuple[int, ...]:
    """Factors whose product is a codebook size, none above `largest`, in falling order.

    They are as few as possible, and of these the ones whose largest factor is smallest.

    Raises:
        UserError: the size has a prime factor above `largest`.
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
    """The layout of sub-tokens.

    Each code of a codebook above `largest` becomes several sub-tokens, at further depths of its position.
    """
    levels = []
    for level in layout.levels:
        parts = tuple(p for size in level.depth_sizes for p in (factors(size, largest) if size > largest else (size,)))
        even = len(set(parts)) == 1
        levels.append(Level(level.height, level.width, len(parts), max(parts), None if even else parts))
    return CodeLayout(layout.image_shape, tuple(levels))


class SubTokens(Prior):
    """A prior over codes, made of a prior over their sub-tokens.

    Every code is exactly one sequence of sub-tokens, so the probability of a code is that of its sub-tokens.

    Args:
        layout: of the codes.
        inner: the prior over sub-tokens, for the layout from `split_layout`.
    """

    def __init__(self, layout: CodeLayout, inner: Prior) -> None:
        super().__init__(layout, inner.num_classes, inner.first)
        self.inner, self.trained, self.exact = inner, inner.trained, inner.exact
        self.noise, self.paced = inner.noise, inner.paced
        self.uses_labels, self.resolved_params = inner.uses_labels, inner.resolved_params
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
        self.ends = [0, *accumulate(counts)]  # number of sub-tokens of the first n codes
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        for name, tensor in (("sizes", sizes), ("weights", weights), ("owner", owner)):
            self.register_buffer(name, tensor, persistent=False)

    def split(self, tokens: Tensor) -> Tensor:
        """Codes (B, n) of whole levels -> sub-tokens (B, n'). The first sub-token of a code is its leading digit."""
        values = self.spread(tokens)
        return values // self.weights[: values.shape[1]] % self.sizes[: values.shape[1]]

    def spread(self, values: Tensor) -> Tensor:
        """Repeats each code's value for each of its sub-tokens: (B, n) of whole levels -> (B, n')."""
        return values[:, self.owner[: self.ends[values.shape[1]]]]

    def join(self, subtokens: Tensor) -> Tensor:
        """Sub-tokens (B, N') -> codes (B, N)."""
        return self._gather(subtokens * self.weights)

    def _gather(self, values: Tensor) -> Tensor:
        """Sums of each code's sub-tokens: (B, N') -> (B, N). If the first levels are missing, their sums are 0."""
        sums = values.new_zeros(len(values), self.layout.num_tokens)
        return sums.index_add(1, self.owner[-values.shape[1] :], values)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """See `Prior.fit`."""
        self.inner.fit((self.split(tokens), labels) for tokens, labels in batches)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Prior.nll`."""
        return self._gather(self.inner.nll(self.split(tokens), labels))[:, self.given_tokens :]

    def forward(
        self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None, progress: Tensor | None = None
    ) -> Tensor:
        """The training loss, a scalar: mean nats per code."""
        return self.inner(self.split(tokens), labels, noise, progress) * (self.inner.own_tokens / self.own_tokens)

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        """See `Prior.estimate`."""
        nats, variance = self.inner.estimate(self.split(tokens), labels, again)
        return self._gather(nats)[:, self.given_tokens :], variance

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws the sub-tokens and joins them to codes, see `Prior.decode`. All parts of a forced code are forced."""
        parts = torch.where(self.spread(forced) < 0, -1, self.split(forced.clamp_min(0)))
        return self.join(self.inner.decode(sampler, labels, self.split(coarser), parts, part))

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory for each further sequence, see `Prior.decoding_bytes`: those of the inner prior."""
        return self.inner.decoding_bytes(device, bytes_per_logit)

    def measured_at_once(self, batch_size: int) -> int:
        """See `Prior.measured_at_once`. The logits are those of sub-tokens."""
        return self.inner.measured_at_once(batch_size)

    def checkpoint_gradients(self) -> None:
        """See `Prior.checkpoint_gradients`."""
        self.inner.checkpoint_gradients()
