"""Priors that are one convolutional network a level: what they share around the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Autoregressive, Decoding
from stage2_prior.priors.heads import LevelHeads, joined, project, widen
from stage2_prior.priors.products import Product
from tessera.codes.layout import CodeLayout, Level


class Embedding(nn.Module):
    """Embeddings of a level's tokens, a table of its own for each depth."""

    def __init__(self, level: Level, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(level.depth_sizes), channels)
        offsets = torch.tensor((0, *level.depth_sizes)).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, depth) -> (B, h, w, depth, channels)."""
        return self.table(codes + self.offsets)

    def one(self, tokens: Tensor, depth: int) -> Tensor:
        """Tokens (B,) of one depth -> (B, channels)."""
        return self.table(tokens + self.offsets[depth])


class Residual(nn.Module):
    """GELU, 3x3, GELU, 3x3, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class Surroundings(nn.Module):
    """What a level knows before its first token: its places, and the codes of all coarser levels."""

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
        """Coarser code grids [(B, h, w, depth), ...] -> (1 or B, channels, h, w), resized to this level's grid."""
        if not len(self.coarser):
            return self.place
        maps = [embed(codes).sum(3).movedim(-1, 1) for embed, codes in zip(self.coarser, grids, strict=True)]
        return self.place + self.conditioning(sum(F.interpolate(m, size=self.size, mode="nearest") for m in maps))


class Readout(nn.Module):
    """Features of a position to the logits of its tokens, each given the position's earlier depths."""

    def __init__(self, level: Level, channels: int, dropout: float) -> None:
        super().__init__()
        self.vocabulary = level.codebook_size
        self.mix = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Dropout(dropout))
        self.heads = LevelHeads(level, 2 * channels)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """Features (..., channels), the embeddings of the earlier depths added, to logits (..., K) of one depth."""
        return widen(project(self.heads[depth], self.mix(features)), self.vocabulary)

    def decoding(self, rows: int) -> Callable[[Tensor, int], Tensor]:
        """The same without dropout for `rows` positions at a time: features (rows, channels) and depth to (rows, K)."""
        into, gelu, _ = self.mix
        mix = Product(into.weight, into.bias, rows, gelu.approximate)
        heads = [Product(head.weight, head.bias, rows) for head in self.heads]
        precision = self.heads[0].weight.dtype
        return lambda features, depth: widen(heads[depth](mix(features).to(precision)), self.vocabulary)


@dataclass
class GridState:
    """Where decoding one grid stands: the network's own state, the last layers, the current position and its features
    with the embeddings of its earlier depths, and these."""

    network: Any
    readout: Callable[[Tensor, int], Tensor]
    features: Tensor
    position: int = 0
    earlier: list[Tensor] = field(default_factory=list)


class Grid(nn.Module):
    """An autoregressive network over one grid (h, w) with `depth` codes a position, given a place map and a label.

    A family defines `features` for a whole grid, and `begin` and `follow` for a position at a time; its `blocks` are
    what gradient checkpointing computes again.
    """

    blocks: nn.ModuleList

    def __init__(self, level: Level, channels: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.readout = Readout(level, channels, dropout)

    def features(self, grid: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """Features (B, channels, h, w), each of what stands before its position.

        Args:
            grid: (B, channels, h, w), each position's embeddings, summed over depth.
            place: (1 or B, channels, h, w); label: (B, channels).
        """
        raise NotImplementedError

    def begin(self, place: Tensor, label: Tensor) -> Any:
        """The network's state before the first position; arguments as in `features`."""
        raise NotImplementedError

    def follow(self, state: Any, row: int, column: int, previous: Tensor | None) -> Tensor:
        """Features (B, channels) of a position, given the embedding of the one before it (None at first)."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """Logits (B, h·w·depth, K) of a whole grid, from the embeddings (B, h, w, depth, channels) of its tokens."""
        features = self.features(embeddings.sum(3).movedim(-1, 1), place, label).movedim(1, -1)
        logits = []
        for depth in range(self.level.depth):
            logits.append(self.readout(features, depth)[:, :, :, None])
            features = features + embeddings[:, :, :, depth]
        return joined(logits, 3).flatten(1, 3)

    def start(self, place: Tensor, label: Tensor) -> GridState:
        """Begin decoding; arguments as in `features`."""
        return GridState(self.begin(place, label), self.readout.decoding(len(label)), label)

    def step(self, state: GridState, embedding: Tensor | None) -> Tensor:
        """Logits (B, K) of the next token, given the embedding (B, channels) of the one just chosen (None at first)."""
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
    """A decoding state: labels (B,), the tokens so far, and where the current level's grid stands."""

    labels: Tensor
    tokens: list[Tensor]
    grid: GridState | None = None


class GridPrior(Autoregressive):
    """p(codes | label), level by level in raster order, a finer level conditioned on all coarser ones."""

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        first: int,
        channels: int,
        grids: list[Grid],
        conditioning_blocks: int,
    ) -> None:
        """`grids`: of the levels of its own."""
        super().__init__(layout, num_classes, first)
        own = range(first, len(layout.levels))
        self.embeddings = nn.ModuleList(Embedding(layout.levels[i], channels) for i in own)
        self.surroundings = nn.ModuleList(Surroundings(layout, i, channels, conditioning_blocks) for i in own)
        self.labels = nn.ModuleList(nn.Embedding(num_classes + 1, channels) for _ in own)
        self.grids = nn.ModuleList(grids)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        labels = self.fill_labels(labels, tokens)
        codes = self.layout.unflatten(tokens)
        logits = []
        for i, grid in enumerate(self.grids):
            place = self.surroundings[i](codes[: self.first + i])
            logits.append(grid(self.embeddings[i](codes[self.first + i]), place, self.labels[i](labels)))
        return joined([widen(part, self.layout.vocabulary) for part in logits], 1)

    def begin(self, labels: Tensor, context: Tensor) -> GridsState:
        return GridsState(labels, list(context.unbind(1)))

    def start_at(self, level: int, labels: Tensor, coarser: Tensor) -> Decoding:
        """As `start`, from one of its later levels on, given the tokens (B, n) of all levels before that; the first
        step takes the last of these."""
        return Decoding(coarser.shape[1], GridsState(labels, list(coarser[:, :-1].unbind(1))))

    def advance(self, state: GridsState, position: int, tokens: Tensor | None) -> Tensor:
        """As the base's. A token costs the same wherever it stands: what was seen is kept, not computed again."""
        if tokens is not None:
            state.tokens.append(tokens)
        level, row, column, depth = self.layout.places[position].tolist()
        i, embedding = level - self.first, None
        if row == column == depth == 0:
            place = self.surroundings[i](self._coarser(state, level))
            state.grid = self.grids[i].start(place, self.labels[i](state.labels))
        else:
            embedding = self.embeddings[i].one(tokens, (depth - 1) % self.layout.levels[level].depth)
        return widen(self.grids[i].step(state.grid, embedding), self.layout.vocabulary)

    def _coarser(self, state: GridsState, index: int) -> list[Tensor]:
        """The finished levels' codes, as grids."""
        grids = []
        for level, part in zip(self.layout.levels[:index], self.layout.slices(), strict=False):
            flat = torch.stack(state.tokens[part], dim=1)
            grids.append(flat.view(-1, level.height, level.width, level.depth))
        return grids

    def blocks(self) -> Iterable[nn.Module]:
        return [block for grid in self.grids for block in grid.blocks]
