"""The layers of a PixelSNAIL over one grid of codes, for a whole grid at once or token by token.

A causal convolution is the sum of two: one over the rows above a position, one over earlier columns of its own row.
When decoding begins a row, the first is computed for all columns of the row at once. A token then costs only the
second. So the many weights of the first are read once a row, in products as large as in training.

Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", section 3. The sizes and the order
of layers are those of rosinality/vq-vae-2-pytorch, with one difference: its kernels leave out a position's own
features, and these include them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.decoding.cache import KVCache
from stage2_prior.priors.decoding.products import Product
from tessera.codes.layout import Level


@dataclass
class SnailState:
    """How far a grid has been decoded. Dictionaries hold what each module keeps.

    Attributes:
        batch: B; level: the grid's level; row, column: the current position.
        inputs: a causal convolution's inputs of the rows above and of the current row, each
            (width + 2 margins, B, channels).
        above: what the rows above add to each column of the current row, (B, channels) each.
        caches: an attention's keys and values.
        products: a layer's product for one position. Of a causal convolution: the part within the row.
        row_products: a layer's product for a whole row.
        covered: room for the inputs of such a product, by its shape.
    """

    batch: int
    level: Level
    row: int = 0
    column: int = 0
    inputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    above: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    caches: dict[nn.Module, KVCache] = field(default_factory=dict)
    products: dict[nn.Module, Product] = field(default_factory=dict)
    row_products: dict[nn.Module, Product] = field(default_factory=dict)
    covered: dict[tuple[int, ...], Tensor] = field(default_factory=dict)


class CausalConv(nn.Module):
    """A causal convolution with a kernel of k columns.

    It covers k - 1 rows above a position with k // 2 columns on either side, and k // 2 columns to the left in the
    position's own row. It also covers the position itself, unless it is `strict`. The first layer of a network is
    strict, because its input at a position is what the network predicts there.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, strict: bool = False) -> None:
        super().__init__()
        self.reach, self.rows, self.strict = kernel_size // 2, kernel_size - 1, strict
        self.above = nn.Conv2d(inputs, outputs, (self.rows, kernel_size))
        self.beside = nn.Conv2d(inputs, outputs, (1, self.reach + (not strict)), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of a whole grid: (B, inputs, h, w) -> (B, outputs, h, w). Beyond the grid the input is 0."""
        p = self.reach
        above = self.above(F.pad(x[:, :, :-1], (p, p, self.rows, 0)))
        left = x[..., :-1] if self.strict else x
        return above + self.beside(F.pad(left, (p, 0)))

    def begin_row(self, state: SnailState, onto: Tensor | None = None) -> None:
        """Begins a row: computes what the rows above add to each of its columns.

        It is a product with the inputs that each column's kernel covers. A convolution would be slower, because it
        lays its weights out anew for every row.

        Args:
            onto: (width · B, outputs), to which the result is added.
        """
        p, width, bias = self.reach, state.level.width, self.above.bias
        if state.row == 0:
            # Weights in the order of the kept inputs. Once a grid, because copying them costs as much as a token.
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
            if shape not in state.covered:  # allocated once: touching new pages costs more than writing to them
                state.covered[shape] = columns[0].new_empty(shape)
            covered = torch.stack(columns, 2, out=state.covered[shape]).flatten(2).flatten(0, 1)
            product = state.row_products[self]
            said = product(covered) if onto is None else product.onto(covered, onto)
        state.above[self] = said.unflatten(0, (width, -1)).unbind()

    def one(self, x: Tensor | None, state: SnailState) -> Tensor:
        """The output at the current position, (B, outputs).

        Args:
            x: the input there, (B, inputs). None for a strict convolution, which gets it later, by `keep`.
        """
        if x is not None:
            self.keep(x, state)
        beside = state.inputs[self][-1].narrow(0, state.column, self.beside.weight.shape[-1])
        return state.products[self].onto(beside.transpose(0, 1).flatten(1), state.above[self][state.column])

    def keep(self, x: Tensor, state: SnailState) -> None:
        """Stores the input (B, inputs) at the current position."""
        state.inputs[self][-1].select(0, self.reach + state.column).copy_(x)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def one(self, x: Tensor, state: SnailState) -> Tensor:
        """The output at one position: (B, inputs) -> (B, outputs)."""
        return self.product(state)(x)

    def product(self, state: SnailState) -> Product:
        """The layer as a product for one position."""
        if self not in state.products:
            state.products[self] = Product(self.weight.flatten(1), self.bias, state.batch)
        return state.products[self]


class GatedResidual(nn.Module):
    """A residual block: ELU, convolution, ELU, dropout, convolution, gated linear unit, added to the input.

    Args:
        auxiliary: channels of further features that are added after the first convolution; 0: none.
        condition: channels of the conditioning that is added before the gate; 0: none.
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
        """A whole grid: (B, channels, h, w) -> (B, channels, h, w)."""
        hidden = self.first(F.elu(x))
        if auxiliary is not None:
            hidden = hidden + self.auxiliary(F.elu(auxiliary))
        gates = self.second(self.dropout(F.elu(hidden)))
        if condition is not None:
            gates = gates + self.condition(condition)
        return x + F.glu(gates, 1)

    def begin_row(self, state: SnailState, condition: Tensor) -> None:
        """Begins a row of a block with causal convolutions.

        Args:
            condition: the conditioning of the row, (width · B, condition's channels).
        """
        if state.row == 0:
            state.row_products[self] = Product(self.condition.weight.flatten(1), None, len(condition))
        self.first.begin_row(state)
        self.second.begin_row(state, state.row_products[self](condition))

    def one(self, x: Tensor, state: SnailState) -> Tensor:
        """The output at one position: (B, channels) -> (B, channels)."""
        return self.close(x, self.first.one(F.elu(x), state), state)

    def close(self, x: Tensor, hidden: Tensor, state: SnailState) -> Tensor:
        """The second half of `one`: from the output of the first convolution to the block's output (B, channels).

        Args:
            x: (B, channels), the block's input at the position.
            hidden: (B, hidden), the output of `first` there. The caller has added the auxiliary features, if any.
            state: how far the grid has been decoded; it is changed.
        """
        return x + F.glu(self.second.one(F.elu(hidden), state), 1)


class CausalAttention(nn.Module):
    """Multi-head attention over one grid. A position attends to itself and to all positions before it in raster order.

    The heads' outputs are the result: no linear layer follows them.

    Args:
        queries: channels of the input from which the queries are computed.
        keys: channels of the input from which the keys and the values are computed.
        width: channels of the output, those of all heads together.
        heads: the number of heads. It divides `width`.
        dropout: the share of attention weights that training drops.
    """

    def __init__(self, queries: int, keys: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = Pointwise(queries, width), Pointwise(keys, width), Pointwise(keys, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """A whole grid: inputs of queries (B, queries, h, w) and of keys (B, keys, h, w) -> (B, width, h, w)."""
        q, k, v = (
            layer(x).flatten(2).unflatten(1, (self.heads, -1)).mT
            for layer, x in ((self.query, asking), (self.key, asked), (self.value, asked))
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return found.mT.flatten(1, 2).unflatten(2, asking.shape[2:])

    def one(self, asking: Tensor, asked: Tensor, state: SnailState) -> Tensor:
        """The output (B, width) at the next position in raster order, which attends to itself too.

        The position's key and value are added to `state`.

        Args:
            asking: what the position's query is computed from, (B, queries).
            asked: what its key and value are computed from, (B, keys).
            state: the decoding's state with the keys and values of all positions before.
        """
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
