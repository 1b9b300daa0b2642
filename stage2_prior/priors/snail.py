"""The network of a PixelSNAIL over one grid of codes: gated residual blocks and attention, all causal.

Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Recomputable
from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.grid import Grid
from stage2_prior.priors.snail_layers import CausalAttention, CausalConv, GatedResidual, Pointwise, SnailState
from tessera.codes.layout import Level


class SnailBlock(Recomputable):
    """Causal gated residual blocks, then causal attention over the whole grid."""

    def __init__(
        self, channels: int, hidden: int, kernel_size: int, residuals: int, heads: int, dropout: float
    ) -> None:
        """`residuals`: number of residual blocks. `heads`: of the attention; 0: there is none."""
        super().__init__()
        self.residuals = nn.ModuleList(
            GatedResidual(channels, hidden, kernel_size, dropout, condition=channels) for _ in range(residuals)
        )
        self.attention = None
        if heads:
            self.keys = GatedResidual(2 * channels, channels, 1, dropout)
            self.queries = GatedResidual(channels, channels, 1, dropout)
            self.attention = CausalAttention(channels, 2 * channels, channels // 2, heads, dropout)
            self.out = GatedResidual(channels, channels, 1, dropout, auxiliary=channels // 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """A whole grid: (B, channels, h, w), with a condition of that shape, -> (B, channels, h, w)."""
        out = x
        for residual in self.residuals:
            out = residual(out, condition)
        if self.attention is None:
            return out
        found = self.attention(self.queries(out), self.keys(torch.cat([x, out], 1)))
        return self.out(out, auxiliary=found)

    def begin_row(self, state: SnailState, condition: Tensor) -> None:
        """Begins a row, with its conditioning (width · B, channels)."""
        for residual in self.residuals:
            residual.begin_row(state, condition)

    def one(self, x: Tensor, state: SnailState) -> Tensor:
        """The output at one position: (B, channels) -> (B, channels)."""
        out = x
        for residual in self.residuals:
            out = residual.one(out, state)
        if self.attention is None:
            return out
        both = torch.cat([x, out], 1)
        asked, asking, last = self._firsts(state)(F.elu(both)).chunk(3, 1)
        asking = self.queries.close(out, asking, state)
        found = self.attention.one(asking, self.keys.close(both, asked, state), state)
        return self.out.close(out, self.out.auxiliary.product(state).onto(F.elu(found), last), state)

    def _firsts(self, state: SnailState) -> Product:
        """The first layers of the three residual blocks around the attention, as one product.

        Two of them see only the second half of its input. Their weights are padded with zeros, because another product
        would cost more than multiplying by zeros.
        """
        if self not in state.products:
            layers = [part.first for part in (self.keys, self.queries, self.out)]
            weights = [layer.weight.flatten(1) for layer in layers]
            whole = [F.pad(weight, (weights[0].shape[1] - weight.shape[1], 0)) for weight in weights]
            state.products[self] = Product(torch.cat(whole), torch.cat([layer.bias for layer in layers]), state.batch)
        return state.products[self]


class SnailGrid(Grid):
    """A PixelSNAIL over one grid of codes.

    The features of `Surroundings` and the label condition every gate, so that inputs need no coordinates.

    The code just before a position has a separate input layer. At the left edge this code is the last one of the row
    above, which no kernel reaches. Attention does not see it either, because the key of a position is computed from the
    codes before that position.
    """

    def __init__(
        self,
        level: Level,
        *,
        channels: int,
        hidden: int,
        kernel_size: int,
        blocks: int,
        residuals: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__(level, channels, dropout)
        self.entry = CausalConv(channels, channels, kernel_size, strict=True)
        self.previous = Pointwise(channels, channels, bias=False)
        self.blocks = nn.ModuleList(
            SnailBlock(channels, hidden, kernel_size, residuals, heads, dropout) for _ in range(blocks)
        )

    def features(self, grid: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """See `Grid.features`."""
        condition = place + label[:, :, None, None]
        previous = F.pad(grid.flatten(2), (1, 0))[..., :-1].unflatten(2, grid.shape[2:])
        x = self.entry(grid) + self.previous(previous)
        for block in self.blocks:
            x = block(x, condition)
        return F.elu(x)

    def begin(self, place: Tensor, label: Tensor) -> tuple[SnailState, Tensor]:
        """See `Grid.begin`. The state is what the layers keep, and the conditioning (B, channels, h, w)."""
        return SnailState(len(label), self.level), place + label[:, :, None, None]

    def follow(self, state: tuple[SnailState, Tensor], row: int, column: int, previous: Tensor | None) -> Tensor:
        """See `Grid.follow`."""
        decoding, condition = state
        if previous is not None:
            self.entry.keep(previous, decoding)
        decoding.row, decoding.column = row, column
        if column == 0:
            self.entry.begin_row(decoding)
            # (width · B, channels)
            line = condition[:, :, row].permute(2, 0, 1).expand(-1, decoding.batch, -1).flatten(0, 1)
            for block in self.blocks:
                block.begin_row(decoding, line)
        x = self.entry.one(None, decoding)
        if previous is not None:
            x = x + self.previous.one(previous, decoding)
        for block in self.blocks:
            x = block.one(x, decoding)
        return F.elu(x)
