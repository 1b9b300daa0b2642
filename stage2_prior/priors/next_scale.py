"""The prior `next_scale`: all tokens of a scale at once, given all coarser scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Prior, token_nll
from stage2_prior.priors.blocks import Block, Blocks, Sizes
from stage2_prior.priors.decoding.scales import ScaleDecoder
from stage2_prior.priors.drawing import Part, Sampler, choose_several, require_finite
from stage2_prior.priors.heads import project, widen
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.footprint import LIVE_OUTPUTS, state_bytes


class Parameters(AttentionParams):
    """The section `next_scale` of params.yaml."""


@dataclass(frozen=True)
class Scale:
    """The tokens that are drawn together: one depth of one level.

    Attributes:
        level, depth: which.
        grid: (height, width).
        places: of its tokens in the sequence, row by row. They are `depth` of the level apart.
        rows: of its tokens among those of all scales, scale after scale.
    """

    level: int
    depth: int
    grid: tuple[int, int]
    places: slice
    rows: slice


def scales_of(layout: CodeLayout) -> list[Scale]:
    """The scales of a layout in the order in which they are drawn: levels coarsest first, and their depths in turn."""
    found, row = [], 0
    for number, (level, part) in enumerate(zip(layout.levels, layout.slices(), strict=True)):
        count = level.height * level.width
        for depth in range(level.depth):
            places = slice(part.start + depth, part.stop, level.depth)
            found.append(Scale(number, depth, (level.height, level.width), places, slice(row, row + count)))
            row += count
    return found


class ScaleBlock(Block):
    """A transformer block in which a position attends to all positions of its own scale and of coarser ones.

    `ends`: where each scale's positions end. A scale's queries are a call of their own, as in decoding, so that no mask
    is needed.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool, ends: tuple[int, ...]) -> None:
        super().__init__(width, heads, dropout, causal=causal)
        self.ends = ends

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `Block.attention`. Weights of attention have no dropout, for which CPUs have no fused kernel."""
        starts = (0, *self.ends[:-1])
        return torch.cat(
            [
                F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end])
                for start, end in zip(starts, self.ends, strict=True)
            ],
            2,
        )


class NextScale(Prior):
    """p(codes | label) as the product over scales of p(scale | coarser scales, label), by one transformer.

    A scale is one depth of one level, so that a residual code too is given those before it. Within a scale, tokens are
    independent given the coarser scales. One forward pass gives all logits of a scale.

    The input at a position is what the coarser scales say there: the sum of their tokens' embeddings, brought to the
    scale's grid from scale to scale by bilinear interpolation, plus embeddings of the position's level, row, column and
    depth, of the position itself, and of the label. A special row stands for what is said before the first scale. The
    source takes the tokenizer's own partial sums in place of embedded tokens; a prior here knows the layout alone.

    Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
    section 3.2.
    """

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0, **sizes: Unpack[Sizes]) -> None:
        """Arguments: see the attributes of `Prior` for the layout, and `Parameters` for the sizes."""
        super().__init__(layout, num_classes, first)
        self.scales = scales_of(layout)
        self.ends = SequenceEnds(layout, num_classes, first, sizes["width"], sizes["dropout"])
        self.position = nn.Embedding(layout.num_tokens, sizes["width"])
        nn.init.normal_(self.position.weight, std=0.02)
        block = partial(ScaleBlock, ends=tuple(scale.rows.stop for scale in self.scales))
        self.transformer = Blocks(**sizes, causal=False, block=block)
        order = torch.cat([torch.arange(layout.num_tokens)[scale.places] for scale in self.scales])
        self.register_buffer("order", order, persistent=False)  # the place in the sequence of each row
        self.register_buffer("row_of", order.argsort(), persistent=False)  # the row of each place

    def _start(self, count: int) -> Tensor:
        """What is said before the first scale, (B, h, w, width)."""
        return self.ends.token.weight[self.ends.special].expand(count, *self.scales[0].grid, -1)

    def _said(self, number: int, said: Tensor, tokens: Tensor) -> Tensor:
        """What is said at the next scale's positions, (B, h', w', width).

        Args:
            number: of the scale, which is not the last.
            said: at this scale's positions, (B, h, w, width).
            tokens: int64 (B, h · w), this scale's.
        """
        scale, grid = self.scales[number], self.scales[number + 1].grid
        embedded = self.ends.token(tokens + self.ends.offsets[scale.places][0])
        said = said + embedded.unflatten(1, scale.grid)
        if grid == scale.grid:
            return said
        brought = F.interpolate(said.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
        return brought.permute(0, 2, 3, 1)

    def _input(self, number: int, said: Tensor, labels: Tensor) -> Tensor:
        """The inputs (B, h · w, width) of a scale, from what is said at its positions (B, h, w, width)."""
        places = self.order[self.scales[number].rows]
        return self.ends.at(said.flatten(1, 2) + self.position(places), places, labels)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Logits of every own token given all tokens of coarser scales, float32 (B, n, V); -inf beyond its codebook.

        Args:
            tokens: int64 (B, N).
            labels: int64 (B,); None: the null label.
        """
        labels, said, inputs = self.fill_labels(labels, tokens), self._start(len(tokens)), []
        for number, scale in enumerate(self.scales):
            inputs.append(self._input(number, said, labels))
            if number + 1 < len(self.scales):
                said = self._said(number, said, tokens[:, scale.places])
        hidden = self.transformer(torch.cat(inputs, 1))
        return self.ends.read(hidden[:, self.row_of[self.given_tokens :]])

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """-log p of each own token in nats, (B, n)."""
        return token_nll(self.logits(tokens, labels), tokens[:, self.given_tokens :])

    def scale_logits(self, labels: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Decoding, scale after scale: a function of a scale's number and the tokens so far.

        It is called for each scale in turn, with the tokens (B, N) of which those of coarser scales are there, and
        returns the logits of the scale's tokens, float32 (B, h · w, V); of a scale that is given, an empty tensor.
        """
        rows, largest = len(labels), max(scale.rows.stop - scale.rows.start for scale in self.scales)
        decoder = ScaleDecoder(self.transformer, rows, self.layout.num_tokens, rows * largest)
        said = self._start(rows)

        def run(number: int, tokens: Tensor) -> Tensor:
            nonlocal said
            scale = self.scales[number]
            if number:
                said = self._said(number - 1, said, tokens[:, self.scales[number - 1].places])
            hidden = decoder.extend(self._input(number, said, labels))
            if scale.level < self.first:
                return hidden.new_empty(0)
            head = self.ends.heads[scale.level - self.first][scale.depth]
            return widen(project(head, hidden), self.layout.vocabulary)

        return run

    @torch.no_grad()
    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws a scale in each forward pass, see `Prior.decode`. Guidance that rises does so from scale to scale."""
        own, given = self.own_tokens, self.given_tokens
        guided = sampler.guided(range(self.first, len(self.layout.levels)))
        uniforms = self.token_uniforms(sampler)
        if guided:  # the null label's rows follow the labels' rows in one batch
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        logits_of = self.scale_logits(labels)
        tokens = torch.cat([coarser, forced[:, given:].clamp_min(0)], dim=1)
        drawn = [number for number, scale in enumerate(self.scales) if scale.level >= self.first]
        finite = torch.ones((), dtype=torch.bool, device=tokens.device)
        for number, scale in enumerate(self.scales):
            logits = logits_of(number, torch.cat([tokens, tokens]) if guided else tokens)
            if number < drawn[0]:
                continue
            if guided:
                logits = sampler.guide(logits, scale.level, part.moment(number - drawn[0], len(drawn)))
            finite &= logits.amax(-1).isfinite().all()
            here = scale.places
            own_places = slice(here.start - given, here.stop - given, here.step)
            chosen = choose_several(sampler, logits, uniforms[:, own_places], scale.level)
            tokens[:, here] = torch.where(forced[:, here] >= 0, forced[:, here], chosen)
            sampler.advance(part.share * chosen.shape[1] / own)
        require_finite(finite)
        return tokens

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory for each further sequence, see `Prior.decoding_bytes`.

        They are its keys and values, and the widest outputs of the largest scale.
        """
        weight = self.transformer.norm.weight
        largest = max(scale.rows.stop - scale.rows.start for scale in self.scales)
        few, more = (state_bytes(ScaleDecoder(self.transformer, rows, self.layout.num_tokens, 1)) for rows in (6, 8))
        widest = largest * max(4 * self.transformer.width * weight.itemsize, self.layout.vocabulary * 4)
        return (more - few) // 2 + LIVE_OUTPUTS * widest + bytes_per_logit * self.layout.vocabulary

    def blocks(self) -> Iterable[Block]:
        return self.transformer.layers
