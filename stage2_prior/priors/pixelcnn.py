"""A gated PixelCNN over codes: one network a level, a finer level conditioned on all coarser ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.codes import CodeLayout
from stage2_prior.priors.gated import GatedGrid, GridState
from stage2_prior.priors.heads import check_step, fill_labels, refuse_context, token_nll, widen


class Embedding(nn.Module):
    """Embeddings of a level's tokens, a table of its own for each depth."""

    def __init__(self, depth: int, codebook_size: int, channels: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.table = nn.Embedding(depth * codebook_size, channels)
        self.register_buffer("offsets", torch.arange(depth) * codebook_size, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, depth) -> (B, h, w, depth, channels)."""
        return self.table(codes + self.offsets)

    def one(self, tokens: Tensor, depth: int) -> Tensor:
        """Tokens (B,) of one depth -> (B, channels)."""
        return self.table(tokens + depth * self.codebook_size)


class Surroundings(nn.Module):
    """What a level knows before its first token: its places, and the codes of all coarser levels."""

    def __init__(self, layout: CodeLayout, index: int, channels: int) -> None:
        super().__init__()
        level = layout.levels[index]
        self.size = (level.height, level.width)
        self.place = nn.Parameter(torch.randn(1, channels, *self.size) * 0.02)
        coarser = layout.levels[:index]
        self.coarser = nn.ModuleList(Embedding(c.depth, c.codebook_size, channels) for c in coarser)
        self.conditioning = nn.Sequential()
        if coarser:
            self.conditioning.append(nn.Conv2d(channels, channels, 3, padding=1)).append(nn.GELU())
            self.conditioning.append(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, grids: list[Tensor]) -> Tensor:
        """Coarser code grids [(B, h, w, depth), ...] -> (1 or B, channels, h, w), resized to this level's grid."""
        if not len(self.coarser):
            return self.place
        maps = [embed(codes).sum(3).movedim(-1, 1) for embed, codes in zip(self.coarser, grids, strict=True)]
        return self.place + self.conditioning(sum(F.interpolate(m, size=self.size, mode="nearest") for m in maps))


@dataclass
class PixelCNNState:
    """A decoding state: labels (B,), the tokens so far, and where the current level's grid stands."""

    labels: Tensor
    tokens: list[Tensor] = field(default_factory=list)
    position: int = 0
    grid: GridState | None = None


class PixelCNN(nn.Module):
    """p(codes | label), level by level in raster order, by gated convolutions without a blind spot.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2; a network a
    level as in Razavi, van den Oord and Vinyals 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", 3.2.
    """

    trained = True

    def __init__(
        self, layout: CodeLayout, num_classes: int, *, layers: int, channels: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.layout, self.num_classes = layout, num_classes
        self.params = {"layers": layers, "channels": channels, "kernel_size": kernel_size, "dropout": dropout}
        levels = layout.levels
        self.embeddings = nn.ModuleList(Embedding(c.depth, c.codebook_size, channels) for c in levels)
        self.surroundings = nn.ModuleList(Surroundings(layout, i, channels) for i in range(len(levels)))
        self.labels = nn.ModuleList(nn.Embedding(num_classes + 1, channels) for _ in levels)
        self.grids = nn.ModuleList(GatedGrid(c, layers, channels, kernel_size, dropout) for c in levels)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, N, V), teacher-forced: each token's given all before it; -inf beyond its K."""
        labels = fill_labels(labels, tokens, self.num_classes)
        codes = self.layout.unflatten(tokens)
        logits = []
        for i, grid in enumerate(self.grids):
            place = self.surroundings[i](codes[:i])
            logits.append(grid(self.embeddings[i](codes[i]), place, self.labels[i](labels)))
        return torch.cat([widen(part, self.layout.vocabulary) for part in logits], dim=1)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Exact nats a token, (B, N)."""
        return token_nll(self.logits(tokens, labels), tokens)

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Mean nats a token, a scalar: the training loss."""
        return self.nll(tokens, labels).mean()

    def start(self, labels: Tensor, context: None = None) -> PixelCNNState:
        """Begin decoding one sequence for each label (B,); the null label is num_classes."""
        refuse_context(context)
        return PixelCNNState(labels)

    @torch.no_grad()
    def step(self, state: PixelCNNState, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token, given the tokens (B,) just chosen (None at first).

        A token costs the same wherever it stands: rows and columns already seen are kept, not recomputed.
        """
        check_step(state.position, tokens, self.layout)
        if tokens is not None:
            state.tokens.append(tokens)
        part = next(i for i, s in enumerate(self.layout.slices()) if s.start <= state.position < s.stop)
        local = state.position - self.layout.slices()[part].start
        grid, embedding = self.grids[part], None
        if local == 0:
            place = self.surroundings[part](self._coarser(state, part))
            state.grid = grid.start(place, self.labels[part](state.labels))
        else:
            embedding = self.embeddings[part].one(tokens, (local - 1) % self.layout.levels[part].depth)
        state.position += 1
        return widen(grid.step(state.grid, embedding), self.layout.vocabulary)

    def _coarser(self, state: PixelCNNState, part: int) -> list[Tensor]:
        """The finished levels' codes, as grids."""
        grids = []
        for level, s in zip(self.layout.levels[:part], self.layout.slices(), strict=False):
            flat = torch.stack(state.tokens[s], dim=1)
            grids.append(flat.view(-1, level.height, level.width, level.depth))
        return grids
