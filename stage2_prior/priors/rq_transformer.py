"""A transformer over positions, and one over the depth of each position: for residual codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Autoregressive
from stage2_prior.priors.blocks import Blocks
from stage2_prior.priors.decoders import Decoder
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import DecodingEnds, SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Positive

MANY = 2**15  # positions at a time: CUDA's attention kernels take fewer than 2^16 sequences


class Parameters(AttentionParams):
    """Parameters of `rq_transformer`: `layers` over positions, `depth_layers` over the codes of a position."""

    depth_layers: Positive


@dataclass
class RQState:
    """A decoding state: the ends, the positions' keys and values and the current one's depths'; the sum of the current
    position's codes' embeddings so far (before the first: that of `special`), and its summary (B, width)."""

    ends: DecodingEnds
    across: Decoder
    down: Decoder
    summed: Tensor
    summary: Tensor | None = None


class RQTransformer(Autoregressive):
    """p(codes | label): a position's codes, one given another, from a summary of all positions before it.

    The spatial transformer takes the sum of the embeddings of the position before; the depth transformer starts from
    its output, and has the sum of the embeddings of the depths before added to it.

    Source: Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.2.
    """

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        layers: int,
        depth_layers: int,
        width: int,
        heads: int,
        dropout: float,
        first: int = 0,
    ) -> None:
        super().__init__(layout, num_classes, first)
        self.ends = SequenceEnds(layout, num_classes, first, width, dropout)
        self.across = Blocks(layers, width, heads, dropout, causal=True)
        self.down = Blocks(depth_layers, width, heads, dropout, causal=True)
        firsts = (layout.places[:, 3] == 0).nonzero()[:, 0]
        self.register_buffer("firsts", firsts, persistent=False)  # the places of depth 0

    def _embedded(self, tokens: Tensor) -> list[Tensor]:
        """Embeddings of the tokens (B, n) of whole levels: (B, positions, depth, width) each."""
        levels = self.layout.levels[: len(self.layout.levels) if tokens.shape[1] > self.given else self.first]
        embedded = self.ends.token(self.ends.rows(tokens)).split([level.tokens for level in levels], dim=1)
        return [part.unflatten(1, (-1, level.depth)) for part, level in zip(embedded, levels, strict=True)]

    def _inputs(self, embedded: list[Tensor], labels: Tensor) -> Tensor:
        """Inputs (B, positions, width) of the spatial transformer: what stands before each position."""
        sums = torch.cat([part.sum(2) for part in embedded], dim=1)
        before = torch.cat([self._start(labels)[:, None], sums[:, :-1]], dim=1)
        return self.ends.at(before, self.firsts[: before.shape[1]], labels)

    def _start(self, labels: Tensor) -> Tensor:
        """What stands before the first position, (B, width)."""
        return self.ends.token(torch.full_like(labels, self.ends.special))

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        labels = self.fill_labels(labels, tokens)
        embedded = self._embedded(tokens)
        summaries = self.across(self._inputs(embedded, labels))
        hidden, parts = [], self.layout.slices()
        by_level = summaries.split([part.shape[1] for part in embedded], dim=1)
        for i in range(self.first, len(embedded)):
            before = F.pad(embedded[i][:, :, :-1].cumsum(2), (0, 0, 1, 0))  # exact: without the token itself
            inputs = (by_level[i][:, :, None] + before).flatten(1, 2)
            inputs = self.ends.at(inputs, parts[i], labels).unflatten(1, before.shape[1:3])
            downs = [self.down(part) for part in inputs.flatten(0, 1).split(MANY)]
            hidden.append(torch.cat(downs).unflatten(0, before.shape[:2]).flatten(1, 2))
        return self.ends.read(torch.cat(hidden, dim=1))

    def begin(self, labels: Tensor, context: Tensor) -> RQState:
        deepest = max(level.depth for level in self.layout.levels[self.first :])
        across, down = self.across.decoder(len(labels), len(self.firsts)), self.down.decoder(len(labels), deepest)
        state = RQState(DecodingEnds(self.ends, labels), across, down, self._start(labels))
        if self.given:
            embedded = self._embedded(context)
            across.extend(self._inputs(embedded, labels))
            state.summed = embedded[-1][:, -1].sum(1)
        return state

    def advance(self, state: RQState, position: int, tokens: Tensor | None) -> Tensor:
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
