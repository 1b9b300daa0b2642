"""What the transformer priors share: embeddings of tokens, places and labels, and the last layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stage2_prior.priors.decoding.products import Product
from stage2_prior.priors.heads import LevelHeads, group_offsets, joined, project, widen
from stage2_prior.priors.labels import LabelEmbedding
from tessera.codes.layout import CodeLayout


class SequenceEnds(nn.Module):
    """Both ends of a transformer: from tokens to inputs (B, n, width), and from hidden states (B, n, width) to logits.

    A token's place is its index in the layout's sequence, from 0. An input is the sum of the embeddings of a token, of
    the level, row, column and depth of a place, and of the label.

    Attributes:
        special: the row of the token table that stands for an unknown token, or for what precedes the first one.
    """

    def __init__(self, layout: CodeLayout, num_classes: int, first: int, width: int, dropout: float) -> None:
        """`first`: the first level that is predicted."""
        super().__init__()
        offsets, ends = group_offsets(layout), layout.places.amax(0) + 1
        self.layout, self.first, self.special = layout, first, int(offsets[-1])
        self.token = nn.Embedding(self.special + 1, width)
        self.place = nn.Embedding(int(ends.sum()), width)
        self.label = LabelEmbedding(num_classes, width)
        for table in (self.token, self.place, self.label):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(LevelHeads(level, width) for level in layout.levels[first:])
        shifts = torch.cat([torch.zeros(1, dtype=torch.int64), ends.cumsum(0)[:-1]])
        self.register_buffer("offsets", offsets[:-1], persistent=False)
        self.register_buffer("coordinates", layout.places + shifts, persistent=False)

    def embed(self, rows: Tensor, places: slice | Tensor, labels: Tensor) -> Tensor:
        """Inputs (B, n, width), from rows of the token table (B, n), n places of the sequence, and labels (B,)."""
        return self.at(self.token(rows), places, labels)

    def at(self, x: Tensor, places: slice | Tensor, labels: Tensor) -> Tensor:
        """Like `embed`, from embeddings of tokens (B, n, width)."""
        return self.dropout(x + self.place(self.coordinates[places]).sum(-2) + self.label(labels)[:, None])

    def rows(self, tokens: Tensor, start: int = 0) -> Tensor:
        """The rows of the token table for tokens (B, n), of which the first stands at place `start` of the sequence."""
        return tokens + self.offsets[start : start + tokens.shape[1]]

    def read(self, hidden: Tensor) -> Tensor:
        """Logits, float32 (B, n, V), from hidden states of all own tokens (B, n, width); -inf beyond a codebook."""
        hidden, parts = self.dropout(hidden), []
        counts = [level.tokens for level in self.layout.levels[self.first :]]
        for heads, part in zip(self.heads, hidden.split(counts, dim=1), strict=True):
            by_depth = part.unflatten(1, (-1, len(heads)))
            logits = [project(head, by_depth[:, :, depth : depth + 1]) for depth, head in enumerate(heads)]
            parts.append(joined([widen(each, self.layout.vocabulary) for each in logits], 2).flatten(1, 2))
        return joined(parts, 1)


class DecodingEnds:
    """The ends of a transformer for decoding, one token at a time and without dropout.

    What does not depend on tokens is computed once, in the constructor.

    Args:
        ends: the trained ends.
        labels: int64 (B,), of the batch.
    """

    def __init__(self, ends: SequenceEnds, labels: Tensor) -> None:
        self.table, self.special, self.vocabulary = ends.token, ends.special, ends.layout.vocabulary
        self.places, self.label = ends.place(ends.coordinates).sum(-2), ends.label(labels)
        self.offsets, self.coordinates = ends.offsets.tolist(), ends.layout.places.tolist()
        self.first, self.precision = ends.first, ends.heads[0][0].weight.dtype
        self.heads = [[Product(head.weight, head.bias, len(labels)) for head in level] for level in ends.heads]

    def token(self, tokens: Tensor | None, place: int) -> Tensor:
        """Embeddings (B, width) of the tokens (B,) at a place. None stands for the row `special`."""
        if tokens is None:
            return self.table.weight[self.special].expand(len(self.label), -1)
        return self.table(tokens + self.offsets[place])

    def enter(self, x: Tensor, place: int) -> Tensor:
        """The input (B, width) that predicts the token at a place, from the embedding of a token (B, width)."""
        return x + self.places[place] + self.label

    def read(self, hidden: Tensor, place: int) -> Tensor:
        """Logits (B, V) of the token at a place from its hidden state (B, width), in the last layers' own precision."""
        level, _, _, depth = self.coordinates[place]
        return widen(self.heads[level - self.first][depth](hidden.to(self.precision)), self.vocabulary)
