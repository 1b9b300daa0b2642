"""What the convolutional priors share: embeddings, conditioning on coarser levels, last layers, and decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.autoregressive import Autoregressive, DecodingState
from stage2_prior.priors.base import Recomputable
from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.heads import LevelHeads, joined, project, widen
from stage2_prior.priors.labels import LabelEmbedding
from tessera.codes.layout import CodeLayout, Level


class Embedding(nn.Module):
    """Embeddings of a level's tokens. Each depth has a table of its own."""

    def __init__(self, level: Level, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(level.depth_sizes), channels)
        offsets = torch.tensor((0, *level.depth_sizes)).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes, int64 (B, h, w, depth) -> (B, h, w, depth, channels)."""
        return self.table(codes + self.offsets)

    def one(self, tokens: Tensor, depth: int) -> Tensor:
        """Tokens of one depth, int64 (B,) -> (B, channels)."""
        return self.table(tokens + self.offsets[depth])


class Residual(nn.Module):
    """A residual block: GELU, 3x3 convolution, GELU, 3x3 convolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, channels, h, w)."""
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class Surroundings(nn.Module):
    """The features that all tokens of one level are conditioned on: one vector for each position of its grid.

    They are the sum of a learned vector of the position and, if there are coarser levels, of convolutions over the
    codes of all these levels.

    Args:
        layout: all levels of an image.
        index: the level's place in the layout.
        channels: of the features.
        blocks: number of residual blocks over the coarser codes.
    """

    def __init__(self, layout: CodeLayout, index: int, channels: int, blocks: int) -> None:
        super().__init__()
        level = layout.levels[index]
        self.size = (level.height, level.width)
        self.place = nn.Parameter(torch.randn(1, channels, *self.size) * 0.02)
        coarser = layout.levels[:index]
        self.coarser = nn.ModuleList(Embedding(c, channels) for c in coarser)
        self.conditioning = nn.Sequential()
        if coarser:
            self.conditioning.append(nn.Conv2d(channels, channels, 3, padding=1))
            self.conditioning.extend(Residual(channels) for _ in range(blocks))

    def forward(self, grids: list[Tensor]) -> Tensor:
        """Features (B, channels, h, w) of this level's grid; (1, channels, h, w) if there are no coarser levels.

        Args:
            grids: int64 codes of all coarser levels, coarsest first, each (B, its h, its w, its depth). They are
                embedded, summed over depth, and enlarged to this level's grid by repetition.
        """
        if not len(self.coarser):
            return self.place
        maps = [embed(codes).sum(3).movedim(-1, 1) for embed, codes in zip(self.coarser, grids, strict=True)]
        return self.place + self.conditioning(sum(F.interpolate(m, size=self.size, mode="nearest") for m in maps))


class Readout(nn.Module):
    """The last layers: from features of a position to the logits of its tokens, one depth after another."""

    def __init__(self, level: Level, channels: int, dropout: float) -> None:
        super().__init__()
        self.vocabulary = level.codebook_size
        self.mix = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Dropout(dropout))
        self.heads = LevelHeads(level, 2 * channels)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """Logits (..., K) of one depth.

        Args:
            features: (..., channels), to which the embeddings of the position's earlier depths have been added.
        """
        return widen(project(self.heads[depth], self.mix(features)), self.vocabulary)

    def decoding(self, rows: int) -> Callable[[Tensor, int], Tensor]:
        """`forward` as a function without dropout and gradients: (features, depth) -> logits (rows, K).

        The function's `features` are (rows, channels). They include the embeddings of the position's earlier depths.

        Args:
            rows: the usual number of rows of `features`, one for each sequence. Other numbers work too.
        """
        into, gelu, _ = self.mix
        mix = Product(into.weight, into.bias, rows, gelu.approximate)
        heads = [Product(head.weight, head.bias, rows) for head in self.heads]
        precision = self.heads[0].weight.dtype
        return lambda features, depth: widen(heads[depth](mix(features).to(precision)), self.vocabulary)


@dataclass
class GridState:
    """How far a grid has been decoded.

    Attributes:
        network: the network's own state.
        readout: the last layers, prepared for single positions.
        features: of the current position, (B, channels), plus the embeddings of its earlier depths.
        position: number of positions that have been begun.
        earlier: the embeddings of the current position's earlier depths, (B, channels) each.
    """

    network: Any
    readout: Callable[[Tensor, int], Tensor]
    features: Tensor
    position: int = 0
    earlier: list[Tensor] = field(default_factory=list)


class Grid(nn.Module):
    """An autoregressive network over one grid (h, w) with `depth` codes at each position.

    It is conditioned on a map of features and on the label. A subclass defines `features` for a whole grid, and `begin`
    and `follow` for one position after another. Gradient checkpointing computes its `blocks` again.
    """

    blocks: nn.ModuleList

    def __init__(self, level: Level, channels: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.readout = Readout(level, channels, dropout)

    def features(self, grid: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """Features (B, channels, h, w). Those of a position depend only on the positions before it.

        Args:
            grid: (B, channels, h, w), the sum over depth of each position's embeddings.
            place: (1 or B, channels, h, w), from `Surroundings`.
            label: (B, channels), the label's embedding.
        """
        raise NotImplementedError

    def begin(self, place: Tensor, label: Tensor) -> Any:
        """The network's state before the first position. Arguments: see `features`."""
        raise NotImplementedError

    def follow(self, state: Any, row: int, column: int, previous: Tensor | None) -> Tensor:
        """Features (B, channels) of the next position. It is called once for each position, in raster order.

        Args:
            state: the network's state from `begin`; it is changed.
            row: the position's row, from 0.
            column: the position's column, from 0.
            previous: (B, channels), the sum over depth of the embeddings of the tokens at the previous position in
                raster order; None at the first position.
        """
        raise NotImplementedError

    def forward(self, embeddings: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """Logits (B, h·w·depth, K) of a whole grid, from its tokens' embeddings (B, h, w, depth, channels)."""
        features = self.features(embeddings.sum(3).movedim(-1, 1), place, label).movedim(1, -1)
        logits = []
        for depth in range(self.level.depth):
            logits.append(self.readout(features, depth)[:, :, :, None])
            features = features + embeddings[:, :, :, depth]
        return joined(logits, 3).flatten(1, 3)

    def start_decoding(self, place: Tensor, label: Tensor) -> GridState:
        """The state in which decoding begins, before the grid's first token. `next_logits` takes and changes it.

        Args:
            place: (1 or B, channels, h, w), from `Surroundings`.
            label: (B, channels), the label's embedding.
        """
        return GridState(self.begin(place, label), self.readout.decoding(len(label)), label)

    def next_logits(self, state: GridState, embedding: Tensor | None) -> Tensor:
        """Logits (B, K) of the next token.

        Args:
            embedding: (B, channels), of the token just chosen; None at the first token.
        """
        if embedding is not None:
            state.earlier.append(embedding)
        depth = len(state.earlier) % self.level.depth
        if depth == 0:
            previous = sum(state.earlier) if state.earlier else None
            state.features = self.follow(state.network, *divmod(state.position, self.level.width), previous)
            state.position, state.earlier = state.position + 1, []
        else:
            state.features = state.features + embedding
        return state.readout(state.features, depth)


@dataclass
class GridsState:
    """What decoding keeps between tokens.

    Attributes:
        labels: int64 (B,).
        tokens: all tokens so far, int64 (B,) each.
        grid: how far the current level's grid has been decoded.
    """

    labels: Tensor
    tokens: list[Tensor]
    grid: GridState | None = None


class GridPrior(Autoregressive):
    """p(codes | label), level by level in raster order. A finer level is conditioned on all coarser ones."""

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        first: int,
        channels: int,
        grids: list[Grid],
        conditioning_blocks: int,
    ) -> None:
        """`grids`: the networks of this prior's own levels. `conditioning_blocks`: see `Surroundings`."""
        super().__init__(layout, num_classes, first)
        own = range(first, len(layout.levels))
        self.embeddings = nn.ModuleList(Embedding(layout.levels[i], channels) for i in own)
        self.surroundings = nn.ModuleList(Surroundings(layout, i, channels, conditioning_blocks) for i in own)
        self.labels = nn.ModuleList(LabelEmbedding(num_classes, channels) for _ in own)
        self.grids = nn.ModuleList(grids)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Autoregressive.logits`."""
        labels = self.fill_labels(labels, tokens)
        codes = self.layout.unflatten(tokens)
        logits = []
        for i, grid in enumerate(self.grids):
            place = self.surroundings[i](codes[: self.first + i])
            logits.append(grid(self.embeddings[i](codes[self.first + i]), place, self.labels[i](labels)))
        return joined([widen(part, self.layout.vocabulary) for part in logits], 1)

    def begin(self, labels: Tensor, coarser: Tensor) -> GridsState:
        """See `Autoregressive.begin`."""
        return GridsState(labels, list(coarser.unbind(1)))

    def measured_starts(self, labels: Tensor) -> Iterable[tuple[DecodingState, Tensor | None]]:
        """The beginnings of all own levels, because each level has a network and a state of its own."""
        yield from super().measured_starts(labels)
        for part in self.layout.slices()[self.first + 1 :]:
            coarser = labels.new_zeros(len(labels), part.start)
            # The first call takes the last of the coarser tokens.
            yield DecodingState(part.start, GridsState(labels, list(coarser[:, :-1].unbind(1)))), coarser[:, -1]

    def advance(self, state: GridsState, position: int, tokens: Tensor | None) -> Tensor:
        """See `Autoregressive.advance`. Every token of a level costs the same, because earlier results are kept."""
        if tokens is not None:
            state.tokens.append(tokens)
        level, row, column, depth = self.layout.places[position].tolist()
        i, embedding = level - self.first, None
        if row == column == depth == 0:
            place = self.surroundings[i](self._coarser(state, level))
            state.grid = self.grids[i].start_decoding(place, self.labels[i](state.labels))
        else:
            embedding = self.embeddings[i].one(tokens, (depth - 1) % self.layout.levels[level].depth)
        return widen(self.grids[i].next_logits(state.grid, embedding), self.layout.vocabulary)

    def _coarser(self, state: GridsState, index: int) -> list[Tensor]:
        """The codes of the levels before `index`, which are finished, as grids [(B, h, w, depth), ...]."""
        grids = []
        for level, part in zip(self.layout.levels[:index], self.layout.slices(), strict=False):
            flat = torch.stack(state.tokens[part], dim=1)
            grids.append(flat.view(-1, level.height, level.width, level.depth))
        return grids

    def blocks(self) -> Iterable[Recomputable]:
        return [block for grid in self.grids for block in grid.blocks]
