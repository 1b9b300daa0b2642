"""The causal gated residual blocks and attention of a PixelSNAIL over one grid of codes, whole or token by token.

A causal convolution is two: one over the rows above, one over what lies beside in the same row. While a grid is
decoded, what the rows above say to a row is computed for all its columns at once, when the row begins; a token then
costs what lies beside it. So large kernels' weights are read once a row, by products as large as in training.

Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", section 3; the sizes and the order
of layers as in rosinality/vq-vae-2-pytorch, whose kernels leave out a position's own features: here they are in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.grid import Grid
from stage2_prior.priors.products import KVCache, Product
from tessera.codes.layout import Level


@dataclass
class SnailState:
    """Where decoding one grid stands: what each causal convolution and each attention keeps, by the module itself."""

    batch: int
    level: Level
    row: int = 0
    column: int = 0
    inputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)  # rows + 1 of (width + margins, B, channels)
    above: dict[nn.Module, list[Tensor]] = field(default_factory=dict)  # for each column (B, channels)
    caches: dict[nn.Module, KVCache] = field(default_factory=dict)
    products: dict[nn.Module, Product] = field(default_factory=dict)  # of one position; of convolutions, what is beside
    row_products: dict[nn.Module, Product] = field(default_factory=dict)  # of a whole row
    covered: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # room for the input of one of these


class CausalConv(nn.Module):
    """A k x k convolution that sees k - 1 rows above, k // 2 columns either side, and in its own row what lies left.

    With `strict` a position's own features are left out too: for the first layer, whose input is what is predicted.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, strict: bool = False) -> None:
        super().__init__()
        self.reach, self.rows, self.strict = kernel_size // 2, kernel_size - 1, strict
        self.above = nn.Conv2d(inputs, outputs, (self.rows, kernel_size))
        self.beside = nn.Conv2d(inputs, outputs, (1, self.reach + (not strict)), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        p = self.reach
        above = self.above(F.pad(x[:, :, :-1], (p, p, self.rows, 0)))
        left = x[..., :-1] if self.strict else x
        return above + self.beside(F.pad(left, (p, 0)))

    def begin_row(self, state: SnailState, onto: Tensor | None = None) -> None:
        """What the rows above say to every column of the row that begins, added to `onto` (width · B, outputs).

        A product with what each column's kernel covers: a convolution lays its weights out anew for every row.
        """
        p, width, bias = self.reach, state.level.width, self.above.bias
        if state.row == 0:
            # In the order in which inputs are kept; once a grid, since a copy of all weights costs as much as a token.
            beside, above = self.beside.weight[:, :, 0].permute(0, 2, 1), self.above.weight.permute(0, 2, 3, 1)
            state.products[self] = Product(beside.flatten(1), None, state.batch)
            state.row_products[self] = Product(above.flatten(1), bias, state.batch * width)
            row = bias.new_zeros(width + 2 * p, state.batch, beside.shape[-1])
            state.inputs[self] = [torch.zeros_like(row) for _ in range(self.rows)] + [row]
            said = bias.expand(width * state.batch, -1) if onto is None else bias + onto
        else:
            above = state.inputs[self][1:]
            state.inputs[self] = [*above, torch.zeros_like(above[0])]
            columns = [row.unfold(0, 2 * p + 1, 1).mT for row in above]  # (width, B, kernel, channels)
            shape = (*columns[0].shape[:2], len(columns), *columns[0].shape[2:])
            if shape not in state.covered:  # once: the first touch of new pages costs more than what is written
                state.covered[shape] = columns[0].new_empty(shape)
            covered = torch.stack(columns, 2, out=state.covered[shape]).flatten(2).flatten(0, 1)
            product = state.row_products[self]
            said = product(covered) if onto is None else product.onto(covered, onto)
        state.above[self] = said.unflatten(0, (width, -1)).unbind()

    def one(self, x: Tensor | None, state: SnailState) -> Tensor:
        """The current position's output (B, outputs), from its input (B, inputs); `strict`: from what was kept.

        Of a strict convolution the position's own input comes later, by `keep`.
        """
        if x is not None:
            self.keep(x, state)
        beside = state.inputs[self][-1].narrow(0, state.column, self.beside.weight.shape[-1])
        return state.products[self].onto(beside.transpose(0, 1).flatten(1), state.above[self][state.column])

    def keep(self, x: Tensor, state: SnailState) -> None:
        state.inputs[self][-1].select(0, self.reach + state.column).copy_(x)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, which is the same for a grid and for one position."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def one(self, x: Tensor, state: SnailState) -> Tensor:
        return self.product(state)(x)

    def product(self, state: SnailState) -> Product:
        if self not in state.products:
            state.products[self] = Product(self.weight.flatten(1), self.bias, state.batch)
        return state.products[self]


class GatedResidual(nn.Module):
    """ELU, convolution, ELU, dropout, convolution, gated linear unit, added to the input.

    `auxiliary` features join after the first convolution, a `condition` before the gate.
    """

    def __init__(
        self, channels: int, hidden: int, kernel_size: int, dropout: float, *, auxiliary: int = 0, condition: int = 0
    ) -> None:
        super().__init__()
        if kernel_size == 1:
            self.first, self.second = Pointwise(channels, hidden), Pointwise(hidden, 2 * channels)
        else:
            self.first = CausalConv(channels, hidden, kernel_size)
            self.second = CausalConv(hidden, 2 * channels, kernel_size)
        self.auxiliary = Pointwise(auxiliary, hidden) if auxiliary else None
        self.condition = Pointwise(condition, 2 * channels, bias=False) if condition else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None = None, auxiliary: Tensor | None = None) -> Tensor:
        hidden = self.first(F.elu(x))
        if auxiliary is not None:
            hidden = hidden + self.auxiliary(F.elu(auxiliary))
        gates = self.second(self.dropout(F.elu(hidden)))
        if condition is not None:
            gates = gates + self.condition(condition)
        return x + F.glu(gates, 1)

    def begin_row(self, state: SnailState, condition: Tensor) -> None:
        """Prepare a row of one with causal convolutions: condition (width · B, condition's channels) of it."""
        if state.row == 0:
            state.row_products[self] = Product(self.condition.weight.flatten(1), None, len(condition))
        self.first.begin_row(state)
        self.second.begin_row(state, state.row_products[self](condition))

    def one(self, x: Tensor, state: SnailState) -> Tensor:
        """One position: (B, channels) -> (B, channels)."""
        return self.close(x, self.first.one(F.elu(x), state), state)

    def close(self, x: Tensor, hidden: Tensor, state: SnailState) -> Tensor:
        """As `one`, from what the first convolution and the auxiliary features gave, (B, hidden)."""
        return x + F.glu(self.second.one(F.elu(hidden), state), 1)


class CausalAttention(nn.Module):
    """Every position asks all positions up to its own."""

    def __init__(self, queries: int, keys: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = Pointwise(queries, width), Pointwise(keys, width), Pointwise(keys, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """(B, queries, h, w), (B, keys, h, w) -> (B, width, h, w)."""
        q, k, v = (
            layer(x).flatten(2).unflatten(1, (self.heads, -1)).mT
            for layer, x in ((self.query, asking), (self.key, asked), (self.value, asked))
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return found.mT.flatten(1, 2).unflatten(2, asking.shape[2:])

    def one(self, asking: Tensor, asked: Tensor, state: SnailState) -> Tensor:
        """One position: (B, queries), (B, keys) -> (B, width)."""
        if self not in state.caches:
            first, size = self.query.weight, state.level.height * state.level.width
            shape = (state.batch, self.heads, size, first.shape[0] // self.heads)
            state.caches[self] = KVCache(1, shape, first)
            both = [torch.cat([getattr(part, name) for part in (self.key, self.value)]) for name in ("weight", "bias")]
            state.products[self] = Product(both[0].flatten(1), both[1], state.batch)
        k, v = state.products[self](asked).unflatten(1, (2, self.heads, 1, -1)).unbind(1)
        cache = state.caches[self]
        cache.open(1)
        cache.put(0, k, v)
        return cache.ask(0, self.query.one(asking, state).unflatten(1, (self.heads, 1, -1)))


class SnailBlock(nn.Module):
    """Causal gated residual blocks, then attention over all that was seen."""

    def __init__(
        self, channels: int, hidden: int, kernel_size: int, residuals: int, heads: int, dropout: float
    ) -> None:
        """`heads`: 0 for no attention."""
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
        out = x
        for residual in self.residuals:
            out = residual(out, condition)
        if self.attention is None:
            return out
        found = self.attention(self.queries(out), self.keys(torch.cat([x, out], 1)))
        return self.out(out, auxiliary=found)

    def begin_row(self, state: SnailState, condition: Tensor) -> None:
        for residual in self.residuals:
            residual.begin_row(state, condition)

    def one(self, x: Tensor, state: SnailState) -> Tensor:
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
        """The first layers of what is around attention, of which two see the later half of the input alone: a product
        costs more than its zeros."""
        if self not in state.products:
            layers = [part.first for part in (self.keys, self.queries, self.out)]
            weights = [layer.weight.flatten(1) for layer in layers]
            whole = [F.pad(weight, (weights[0].shape[1] - weight.shape[1], 0)) for weight in weights]
            state.products[self] = Product(torch.cat(whole), torch.cat([layer.bias for layer in layers]), state.batch)
        return state.products[self]


class SnailGrid(Grid):
    """A PixelSNAIL over one grid.

    Place and label condition every gate, so no coordinates are mixed into features. The code just before a position
    enters by a layer of its own: kernels do not reach from the left edge to the end of the row above, and attention,
    whose keys are features of what stands before each position, would never see that code either.
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
        condition = place + label[:, :, None, None]
        previous = F.pad(grid.flatten(2), (1, 0))[..., :-1].unflatten(2, grid.shape[2:])
        x = self.entry(grid) + self.previous(previous)
        for block in self.blocks:
            x = block(x, condition)
        return F.elu(x)

    def begin(self, place: Tensor, label: Tensor) -> tuple[SnailState, Tensor]:
        return SnailState(len(label), self.level), place + label[:, :, None, None]

    def follow(self, state: tuple[SnailState, Tensor], row: int, column: int, previous: Tensor | None) -> Tensor:
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
