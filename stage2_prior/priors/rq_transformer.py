"""The prior `rq_transformer`, for residual codes: a transformer over positions, and one over each position's depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.autoregressive import Autoregressive
from stage2_prior.priors.blocks import Blocks, Sizes
from stage2_prior.priors.decoding.engine import Decoder
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import DecodingEnds, SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Positive

MANY = 2**15  # positions per call of the depth transformer: CUDA's attention takes fewer than 2^16 sequences


class Parameters(AttentionParams):
    """The section `rq_transformer` of params.yaml. `layers` go over positions, `depth_layers` over their codes."""

    depth_layers: Positive


@dataclass
class RQState:
    """What decoding keeps between tokens.

    Attributes:
        ends: the embeddings and the last layers, prepared for single tokens.
        across: the spatial transformer, with the keys and values of all positions so far.
        down: the depth transformer, with the keys and values of the current position.
        summed: (B, width), the sum of the embeddings of the current position's codes so far. At first it is the
            embedding that stands before the first position.
        summary: (B, width), the spatial transformer's output for the current position. None before the first token.
    """

    ends: DecodingEnds
    across: Decoder
    down: Decoder
    summed: Tensor
    summary: Tensor | None = None


class RQTransformer(Autoregressive):
    """p(codes | label) by two causal transformers.

    The spatial transformer summarises all positions before a position. Its inputs are the sums of the embeddings of
    each position's codes. The depth transformer predicts the position's codes one after another. Its input for a code
    is the summary plus the embeddings of the position's earlier codes.

    Source: Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.2.
    """

    def __init__(
        self, layout: CodeLayout, num_classes: int, *, depth_layers: int, first: int = 0, **sizes: Unpack[Sizes]
    ) -> None:
        super().__init__(layout, num_classes, first)
        self.ends = SequenceEnds(layout, num_classes, first, sizes["width"], sizes["dropout"])
        self.across = Blocks(**sizes, causal=True)
        self.down = Blocks(**sizes | {"layers": depth_layers}, causal=True)
        firsts = (layout.places[:, 3] == 0).nonzero()[:, 0]
        self.register_buffer("firsts", firsts, persistent=False)  # places in the sequence of the codes of depth 0

    def _embedded(self, tokens: Tensor) -> list[Tensor]:
        """Embeddings of tokens (B, n) of whole levels, for each level (B, positions, depth, width)."""
        levels = self.layout.levels[: len(self.layout.levels) if tokens.shape[1] > self.given_tokens else self.first]
        embedded = self.ends.token(self.ends.rows(tokens)).split([level.tokens for level in levels], dim=1)
        return [part.unflatten(1, (-1, level.depth)) for part, level in zip(embedded, levels, strict=True)]

    def _inputs(self, embedded: list[Tensor], labels: Tensor) -> Tensor:
        """The spatial transformer's inputs (B, positions, width): each position's comes from the position before it."""
        sums = torch.cat([part.sum(2) for part in embedded], dim=1)
        before = torch.cat([self._start(labels)[:, None], sums[:, :-1]], dim=1)
        return self.ends.at(before, self.firsts[: before.shape[1]], labels)

    def _start(self, labels: Tensor) -> Tensor:
        """The embedding that stands before the first position, (B, width)."""
        return self.ends.token(torch.full_like(labels, self.ends.special))

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Autoregressive.logits`."""
        labels = self.fill_labels(labels, tokens)
        embedded = self._embedded(tokens)
        summaries = self.across(self._inputs(embedded, labels))
        hidden, parts = [], self.layout.slices()
        by_level = summaries.split([part.shape[1] for part in embedded], dim=1)
        for i in range(self.first, len(embedded)):
            before = F.pad(
                embedded[i][:, :, :-1].cumsum(2), (0, 0, 1, 0)
            )  # shifted before the sum: subtracting the token afterwards would not be exact
            inputs = (by_level[i][:, :, None] + before).flatten(1, 2)
            inputs = self.ends.at(inputs, parts[i], labels).unflatten(1, before.shape[1:3])
            downs = [self.down(part) for part in inputs.flatten(0, 1).split(MANY)]
            hidden.append(torch.cat(downs).unflatten(0, before.shape[:2]).flatten(1, 2))
        return self.ends.read(torch.cat(hidden, dim=1))

    def begin(self, labels: Tensor, coarser: Tensor) -> RQState:
        """See `Autoregressive.begin`. The coarser levels go through the spatial transformer at once."""
        deepest = max(level.depth for level in self.layout.levels[self.first :])
        across, down = self.across.decoder(len(labels), len(self.firsts)), self.down.decoder(len(labels), deepest)
        state = RQState(DecodingEnds(self.ends, labels), across, down, self._start(labels))
        if self.given_tokens:
            embedded = self._embedded(coarser)
            across.extend(self._inputs(embedded, labels))
            state.summed = embedded[-1][:, -1].sum(1)
        return state

    def advance(self, state: RQState, position: int, tokens: Tensor | None) -> Tensor:
        """See `Autoregressive.advance`."""
        ends = state.ends
        if tokens is not None:
            state.summed = state.summed + ends.token(tokens, position - 1)
        if ends.coordinates[position][3] == 0:
            state.summary = state.across.extend(ends.enter(state.summed, position)[:, None])[:, 0]
            state.down.restart()
            state.summed = torch.zeros_like(state.summed)
        inputs = ends.enter(state.summary + state.summed, position)
        return ends.read(state.down.extend(inputs[:, None])[:, 0], position)

    def blocks(self) -> Iterable[nn.Module]:
        return [*self.across.layers, *self.down.layers]
