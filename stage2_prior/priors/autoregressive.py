"""Priors that give one token after another, each conditioned on all tokens before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stage2_prior.priors.base import Prior, token_nll
from stage2_prior.priors.decoding.products import FEW
from stage2_prior.priors.drawing import Part, Sampler, require_finite
from tessera.footprint import state_bytes

MEASURED_TOKENS = 3  # tokens that are decoded to measure memory: enough to see whether a cache grows


@dataclass
class DecodingState:
    """How far a batch has been decoded.

    Attributes:
        position: index of the next token in the sequence, from 0.
        state: what the prior itself keeps between tokens.
    """

    position: int
    state: Any


class Autoregressive(Prior):
    """A prior that decodes token by token.

    A subclass defines `logits` for whole sequences, and `begin` and `advance` for decoding. Callers decode by
    `start_decoding`, which checks its arguments and calls `begin`, and by `next_logits`, which does the same with
    `advance`.
    """

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Logits of every own token given all true tokens before it, float32 (B, n, V); -inf beyond its codebook.

        Args:
            tokens: int64 (B, N).
            labels: int64 (B,); None: the null label.
        """
        raise NotImplementedError

    def begin(self, labels: Tensor, coarser: Tensor) -> Any:
        """The state before the first own token, from labels (B,) and the coarser levels' tokens (B, given_tokens)."""
        raise NotImplementedError

    def advance(self, state: Any, position: int, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of one token of the sequence.

        Args:
            state: from `begin`; it is changed.
            position: the token's index in the sequence, from 0.
            tokens: int64 (B,), the tokens at `position` - 1; None at the prior's first own token.
        """
        raise NotImplementedError

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """-log p of each own token in nats, (B, n)."""
        return token_nll(self.logits(tokens, labels), tokens[:, self.given_tokens :])

    def start_decoding(self, labels: Tensor, coarser: Tensor | None = None) -> DecodingState:
        """Begins to decode one sequence for each label.

        Args:
            labels: int64 (B,); the null label is num_classes.
            coarser: int64 (B, given_tokens), the tokens of the levels before `first`; None if there are none.

        Raises:
            ValueError: `coarser` has another shape.
        """
        wanted = (len(labels), self.given_tokens)
        if coarser is None:
            coarser = labels.new_empty(len(labels), 0)
        if tuple(coarser.shape) != wanted:
            raise ValueError(f"expected the tokens of the coarser levels, {wanted}, got {tuple(coarser.shape)}")
        with torch.no_grad():
            return DecodingState(self.given_tokens, self.begin(labels, coarser))

    @torch.no_grad()
    def next_logits(self, decoding: DecodingState, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token.

        Args:
            decoding: from `start_decoding`; it is changed.
            tokens: int64 (B,), the tokens just chosen; None at the first call.

        Raises:
            ValueError: the sequence is complete, the first call has tokens, or a later call has none.
        """
        position = decoding.position
        if position >= self.layout.num_tokens:
            raise ValueError(f"the sequence is complete: it has {self.layout.num_tokens} tokens")
        if (tokens is None) != (position == self.given_tokens):
            raise ValueError(
                f"token {position}: the first call takes no tokens, every later one the tokens just chosen"
            )
        decoding.position += 1
        return self.advance(decoding.state, position, tokens)

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws one code after another, see `Prior.decode`."""
        given, uniforms = self.given_tokens, self.token_uniforms(sampler)
        guided = sampler.guided(range(self.first, len(self.layout.levels)))
        if guided:  # the null label's rows follow the labels' rows in one batch
            null = torch.full_like(labels, self.num_classes)
            decoding = self.start_decoding(torch.cat([labels, null]), torch.cat([coarser, coarser]))
        else:
            decoding = self.start_decoding(labels, coarser)
        levels = self.layout.places[given:, 0].tolist()
        drawn = self.draw(sampler, decoding, guided, levels, uniforms, part, forced=forced[:, given:])
        return torch.cat([coarser, drawn], 1)

    def draw(
        self,
        sampler: Sampler,
        decoding: DecodingState,
        guided: bool,
        levels: list[int],
        uniforms: Tensor,
        part: Part,
        *,
        forced: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Draws the next k tokens of a state, one after another.

        Args:
            guided: whether the state has the null label's rows too, after the labels' rows.
            levels: (k,), the level of each token.
            uniforms: float64 (B, k), a random number for each token.
            part: the part of the image's codes that these tokens are.
            forced: int64 (B, k), tokens of at least 0 are kept; None: all are drawn.
            previous: the token before the first one, as `next_logits` takes it.

        Returns:
            int64 (B, k).

        Raises:
            UserError: logits were NaN or infinite.
        """
        if forced is not None and not (forced >= 0).any():
            forced = None
        tokens = []
        largest = uniforms.new_zeros(len(uniforms))  # sum of every token's largest logit: finite if all are
        for number, (level, numbers) in enumerate(zip(levels, uniforms.unbind(1), strict=True)):
            logits = self.next_logits(decoding, previous)
            if guided:
                logits = sampler.guide(logits, level, part.moment(number, len(levels)))
            largest += logits.amax(-1)
            token = sampler.choose(logits, numbers, level)
            if forced is not None:
                token = torch.where(forced[:, number] >= 0, forced[:, number], token)
            tokens.append(token)
            previous = torch.cat([token, token]) if guided else token
            sampler.advance(part.share / len(levels))
        require_finite(largest.isfinite().all())
        return torch.stack(tokens, 1)

    def measured_starts(self, labels: Tensor) -> Iterable[tuple[DecodingState, Tensor | None]]:
        """Where decoding may need the most memory: states, each with the tokens that its first call takes.

        Most priors keep one state for the whole sequence, which is measured from its beginning.
        """
        yield self.start_decoding(labels, labels.new_zeros(len(labels), self.given_tokens)), None

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory for each further sequence, see `Prior.decoding_bytes`.

        Two batches are measured, and their difference counts. Memory that all sequences share is thus left out.
        Both have more than `FEW` sequences, because few sequences may be kept in another precision.
        """
        few, more = (
            self._largest_state(torch.zeros(rows, dtype=torch.int64, device=device)) for rows in (FEW + 2, FEW + 4)
        )
        return (more - few) // 2 + bytes_per_logit * self.layout.vocabulary

    def _largest_state(self, labels: Tensor) -> int:
        """Bytes of the largest state of a batch.

        The first few tokens are decoded. What a growing cache will hold at the end is extrapolated from its growth.
        """
        found = []
        for decoding, tokens in self.measured_starts(labels):
            sizes = []
            for _ in range(min(MEASURED_TOKENS, self.layout.num_tokens - decoding.position)):
                tokens = self.next_logits(decoding, tokens).argmax(-1)
                sizes.append(state_bytes(decoding))
            growth = max(0, sizes[-1] - sizes[-2]) if len(sizes) > 1 else 0
            found.append(sizes[-1] + growth * (self.layout.num_tokens - decoding.position))
        return max(found)
