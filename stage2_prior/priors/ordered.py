"""What lets a causal transformer predict tokens in any order: its embeddings, and its state while it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_prior.priors.decoding.engine import Decoder
from stage2_prior.priors.drawing import left_unknown
from stage2_prior.priors.sequence import DecodingEnds, SequenceEnds
from tessera.codes.layout import CodeLayout


class OrderedEnds(SequenceEnds):
    """The input and output layers of a transformer whose input holds the place of the token to predict.

    The input that predicts a token is the sum of four embeddings: the preceding token, the preceding token's place, the
    place of the token to predict, and the label. Before the first token there is none: then the preceding token is 0
    and its place is N.
    """

    def __init__(self, layout: CodeLayout, num_classes: int, first: int, width: int, dropout: float) -> None:
        super().__init__(layout, num_classes, first, width, dropout)
        self.source = nn.Embedding(self.place.num_embeddings, width)  # of the place of the token before
        nn.init.normal_(self.source.weight, std=0.02)
        self.register_buffer("starts", F.pad(self.offsets, (0, 1), value=self.special), persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Embeddings of places: of the preceding token, (N + 1, width), and of the token to predict, (N, width)."""
        sources, targets = (table(self.coordinates).sum(-2) for table in (self.source, self.place))
        return F.pad(sources, (0, 0, 0, 1)), targets

    def enter(
        self, tokens: Tensor, before: Tensor, here: Tensor, label: Tensor, tables: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The transformer's inputs, float (B, k, width), before dropout. Each predicts a token from the one before it.

        An input is the sum of the embeddings of that token, of both places, and of the label.

        Args:
            tokens: int64 (B, k), the tokens before.
            before, here: int64 (B, k), the places of the tokens before, and of those to be predicted.
            label: (B, width), embeddings of labels.
            tables: from `tables`.
        """
        sources, targets = tables
        embedded = self.token(tokens + self.starts[before])
        return embedded + F.embedding(before, sources) + F.embedding(here, targets) + label[:, None]


@dataclass
class OrderState:
    """How far sequences have been decoded, each in an order of its own.

    All sequences have a token of the same level and depth at the same time.

    Attributes:
        trained: the trained ends.
        ends: what reads hidden states while decoding.
        tables: the embeddings of places.
        decoder: the transformer, with the keys and values so far.
        order: int64 (B, N + 1). The place of the token that comes at time t is in column t + 1; column 0 is N.
        first: (N,), the order of the first sequence.
        last: int64 (B,), the token before the first one that is drawn.
    """

    trained: OrderedEnds
    ends: DecodingEnds
    tables: tuple[Tensor, Tensor]
    decoder: Decoder
    order: Tensor
    first: list[int]
    last: Tensor

    @classmethod
    def after(cls, trained: OrderedEnds, decoder: Decoder, labels: Tensor, order: Tensor, known: Tensor) -> OrderState:
        """The state after the first k tokens, which go through the transformer at once.

        Args:
            labels: int64 (B,).
            order: int64 (B, N), the places of the tokens in the order in which they come.
            known: int64 (B, k), the first tokens.
        """
        ends, padded = DecodingEnds(trained, labels), F.pad(order, (1, 0), value=order.shape[1])
        told = F.pad(known, (1, 0))
        state = cls(trained, ends, trained.tables(), decoder, padded, order[0].tolist(), told[:, -1])
        if count := known.shape[1]:
            decoder.extend(state._inputs(told[:, :count], slice(0, count)))
        return state

    def _inputs(self, tokens: Tensor, times: slice, of: slice | None = None) -> Tensor:
        """The inputs (B, k, width) that predict the tokens at some times from the tokens (B, k) before other times.

        `of`: the times whose tokens before are meant; None: the same.
        """
        of = of or times
        before, here = self.order[:, of], self.order[:, 1:][:, times]
        return self.trained.enter(tokens, before.expand_as(here), here, self.ends.label, self.tables)

    def next(self, tokens: Tensor, time: int) -> Tensor:
        """Logits (B, V) of the token that comes at a time, given the token (B,) before it."""
        hidden = self.decoder.extend(self._inputs(tokens[:, None], slice(time, time + 1)))
        return self.ends.read(hidden[:, 0], self.first[time])

    def next_of_each(self, known: Tensor, positions: int, depth: int) -> Tensor:
        """Logits of the first token of each of the next positions, (B, positions, V), given all known tokens.

        What the transformer has not seen of the known tokens goes in with them. The positions do not see one another.

        Args:
            known: int64 (B, t), all tokens so far, in their order.
            depth: the number of tokens of each of the positions.
        """
        time, cached, told = known.shape[1], self.decoder.length, F.pad(known, (1, 0))
        asked = slice(time, time + positions * depth, depth)
        inputs = [
            self._inputs(told[:, cached:time], slice(cached, time)),
            self._inputs(told[:, time:].expand(-1, positions), asked, of=slice(time, time + 1)),
        ]
        seen = known.new_ones(time - cached + positions, time + positions, dtype=torch.bool).tril(cached)
        seen[time - cached :, time:] = torch.eye(positions, dtype=torch.bool, device=known.device)
        hidden = self.decoder.extend(torch.cat(inputs, 1), seen)[:, time - cached :]
        return self._read(hidden, time)

    def further_of_each(self, tokens: Tensor, time: int, depth: int, number: int) -> Tensor:
        """Logits (B, positions, V) of each position's token at a further depth, given its tokens before.

        Args:
            tokens: int64 (B, positions), each position's token at the depth before.
            time: when the first token of the first position comes.
            depth: the number of tokens of each position; `number`: of the depth, from 1.
        """
        positions = tokens.shape[1]
        times = slice(time + number, time + positions * depth, depth)
        own = torch.eye(positions, dtype=torch.bool, device=tokens.device).repeat(1, number + 1)
        seen = torch.cat([own.new_ones(positions, time), own], 1)
        return self._read(self.decoder.extend(self._inputs(tokens, times), seen), time + number)

    def _read(self, hidden: Tensor, time: int) -> Tensor:
        """Logits (B, k, V) of tokens of one level and depth, that of the token at a time."""
        return self.ends.read(hidden.flatten(0, 1), self.first[time]).unflatten(0, hidden.shape[:2])


def passes_of(kinds: list[tuple[int, int]], steps: int) -> list[tuple[int, int]]:
    """Divides tokens into passes, in which several positions are drawn at a time.

    A level takes `steps` passes, or one a position where it has fewer positions. The number of positions in a pass
    grows along the masked prior's cosine.

    Args:
        kinds: level and depth of each token, in the order in which they come.

    Returns:
        the positions of each pass, and the tokens of each of them.
    """
    positions: list[list[tuple[int, int]]] = []
    for level, depth in kinds:
        if positions and positions[-1][-1][0] == level and positions[-1][-1][1] < depth:
            positions[-1].append((level, depth))
        else:
            positions.append([(level, depth)])
    found = []
    for kind, group in groupby(positions):
        free = unknown = torch.tensor(len(list(group)))
        for number in range(count := min(steps, int(free))):
            left = left_unknown(number, count, free, unknown)
            found.append((int(unknown - left), len(kind)))
            unknown = left
    return found
