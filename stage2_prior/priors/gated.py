"""The gated layers of a PixelCNN over one grid of codes, for a whole grid at once or token by token.

Two stacks of convolutions see what stands before a position: the vertical stack the rows above, the horizontal stack
the row's earlier columns. Embeddings enter the vertical stack shifted down by a row and the horizontal stack shifted
right by a column. So no layer needs a mask: at row r and column c, a vertical kernel with margin p covers rows r-p..r
and columns c-p..c+p, and a horizontal one covers columns c-p..c.

The functions of a layer take rows or columns that are preceded by p earlier ones. For a whole grid these are zeros at
the boundary. Decoding keeps them in buffers that start as zeros. So both ways compute the same, and decoding computes
nothing twice: the vertical stack once for each row, the horizontal stack once for each position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.base import Recomputable
from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.grid import Grid
from tessera.codes.layout import Level


class GatedLayer(Recomputable):
    """One layer of both stacks, each with a residual connection.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2 and figure 2;
    the vertical stack's residual as in Salimans et al. 2017, "PixelCNN++", section 2.4.
    """

    def __init__(self, channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.reach = p = kernel_size // 2
        self.vertical_conv = nn.Conv2d(channels, 2 * channels, (p + 1, kernel_size), padding=(0, p))
        self.vertical_out = nn.Conv2d(channels, channels, 1)
        self.vertical_to_horizontal = nn.Conv2d(channels, 2 * channels, 1)
        self.horizontal_conv = nn.Conv2d(channels, 2 * channels, (1, p + 1))
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        self.place_bias = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.label_bias = nn.Linear(channels, 4 * channels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def bias(self, place: Tensor, label: Tensor) -> Tensor:
        """What place (1 or B, channels, h, w) and label (B, channels) add to the gates, (B, 4 channels, h, w)."""
        return self.place_bias(place) + self.label_bias(label)[:, :, None, None]

    def gate(self, gates: Tensor) -> Tensor:
        """The gated unit tanh(a) · sigmoid(b), equation 2: (B, 2 channels, ...) -> (B, channels, ...)."""
        signal, opening = gates.chunk(2, dim=1)
        return self.dropout(torch.tanh(signal) * torch.sigmoid(opening))

    def forward(self, v: Tensor, h: Tensor, place: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks for a whole grid: vertical v and horizontal h, (B, channels, h, w) each."""
        v, from_vertical = self.vertical(F.pad(v, (0, 0, self.reach, 0)), self.bias(place, label))
        return v, self.horizontal(F.pad(h, (self.reach, 0)), from_vertical)

    def vertical(self, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack for n rows.

        Args:
            rows: (B, channels, p + n, w), the n rows after p earlier ones.
            bias: (B, 4 channels, n, w), from `bias`.

        Returns:
            the n rows, (B, channels, n, w), and what they add to the horizontal gates, (B, 2 channels, n, w).
        """
        own, across = bias.chunk(2, dim=1)
        v = rows[:, :, self.reach :] + self.vertical_out(self.gate(self.vertical_conv(rows) + own))
        return v, self.vertical_to_horizontal(v) + across

    def horizontal(self, columns: Tensor, from_vertical: Tensor) -> Tensor:
        """The horizontal stack for n columns after p earlier ones: (B, channels, h, p + n) -> (B, channels, h, n)."""
        gates = self.horizontal_conv(columns) + from_vertical
        return columns[..., self.reach :] + self.horizontal_out(self.gate(gates))

    def products(self, rows: int) -> tuple[Product, Product]:
        """The horizontal stack's two convolutions as products for `rows` positions: over p + 1 columns, and 1x1."""
        conv, out = self.horizontal_conv, self.horizontal_out
        weight = conv.weight[:, :, 0].permute(0, 2, 1).flatten(1)
        return Product(weight, conv.bias, rows), Product(out.weight.flatten(1), out.bias, rows)


@dataclass
class GatedState:
    """What a gated PixelCNN keeps while a grid is decoded, position after position.

    Each layer reads p rows above the current one and p columns to the left of the current one; p is
    `GatedLayer.reach`. The attributes `rows`, `columns`, `from_vertical` and `products` are lists with an entry for
    each layer. The shapes are those of an entry.

    Attributes:
        place, label: see `Grid.features`.
        rows: the last p rows that entered the vertical stack, (B, channels, p, w); zeros above the grid.
        columns: the last p columns of the current row that entered the horizontal stack, (B, p, channels); zeros left
            of the grid.
        from_vertical: what the vertical stack adds to the horizontal gates in the current row, (w, B, 2 * channels).
        products: see `GatedLayer.products`.
        line: what `Grid.follow` was given for the last w positions, (B, channels, 1, w). Before the grid there are
            zeros. After the last position of a row it is this row.
    """

    place: Tensor
    label: Tensor
    rows: list[Tensor]
    columns: list[Tensor]
    from_vertical: list[Tensor]
    products: list[tuple[Product, Product]]
    line: Tensor


class GatedGrid(Grid):
    """A gated PixelCNN over one grid of codes."""

    def __init__(self, level: Level, *, layers: int, channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__(level, channels, dropout)
        self.blocks = nn.ModuleList(GatedLayer(channels, kernel_size, dropout) for _ in range(layers))

    def features(self, grid: Tensor, place: Tensor, label: Tensor) -> Tensor:
        """See `Grid.features`."""
        v = F.pad(grid[:, :, :-1], (0, 0, 1, 0))
        h = F.pad(grid[..., :-1], (1, 0))
        for layer in self.blocks:
            v, h = layer(v, h, place, label)
        return h

    def begin(self, place: Tensor, label: Tensor) -> GatedState:
        """See `Grid.begin`."""
        zeros = label.new_zeros(*label.shape, 1, 1)
        p, width = self.blocks[0].reach, self.level.width
        return GatedState(
            place=place,
            label=label,
            rows=[zeros.expand(-1, -1, p, width) for _ in self.blocks],
            columns=[zeros[:, None, :, 0, 0].expand(-1, p, -1) for _ in self.blocks],
            from_vertical=[],
            products=[layer.products(len(label)) for layer in self.blocks],
            line=zeros.expand(-1, -1, 1, width),
        )

    def follow(self, state: GatedState, row: int, column: int, previous: Tensor | None) -> Tensor:
        """See `Grid.follow`. What was just completed moves into the buffers."""
        if previous is not None:
            done = torch.cat([state.line, previous[:, :, None, None]], dim=-1)
            state.line = done[..., 1:]  # after the last column this is the completed row
        if column == 0:
            self._begin_row(state, row)
            previous = torch.zeros_like(state.line[:, :, 0, 0])
        h = previous
        for i, (layer, (conv, out)) in enumerate(zip(self.blocks, state.products, strict=True)):
            joined = torch.cat([state.columns[i], h[:, None]], dim=1)
            state.columns[i] = joined[:, 1:]
            h = out.onto(layer.gate(conv.onto(joined.flatten(1), state.from_vertical[i][column])), h)
        return h

    def _begin_row(self, state: GatedState, row: int) -> None:
        """Runs the vertical stack for a new row. Its input is the row above, or zeros for the first row."""
        v, state.from_vertical = state.line, []
        for i, layer in enumerate(self.blocks):
            joined = torch.cat([state.rows[i], v], dim=2)
            state.rows[i] = joined[:, :, 1:]
            # The bias of a single row: those of all rows and layers would be the largest part of the state.
            bias = layer.bias(state.place[:, :, row : row + 1], state.label)
            v, from_vertical = layer.vertical(joined, bias)
            state.from_vertical.append(from_vertical[:, :, 0].permute(2, 0, 1).contiguous())
            state.columns[i] = torch.zeros_like(state.columns[i])
