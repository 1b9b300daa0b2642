"""A causal transformer over the sequence of codes: any causal language model of `transformers`, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.codes import CodeLayout
from stage2_prior.priors import backbone
from stage2_prior.priors.heads import (
    check_step,
    fill_labels,
    group_offsets,
    project,
    refuse_context,
    start_heads,
    token_nll,
    widen,
)


@dataclass
class TransformerState:
    """A decoding state: labels (B,), the keys and values so far, the position of the next token."""

    labels: Tensor
    cache: Any
    position: int = 0


class Transformer(nn.Module):
    """p(codes | label) in the layout's order: all levels in one sequence, so a fine token sees every coarse one.

    The input that predicts a token is the embedding of the token before it, plus embeddings of the level, row, column
    and depth of the token to be predicted, plus the label's, at every position.

    Source: Esser, Rombach and Ommer 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.2 (a
    transformer over a VQ model's codes).
    """

    trained = True

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        architecture: str,
        layers: int,
        width: int,
        heads: int,
        dropout: float,
        extra: dict[str, Any],
        configuration: dict[str, Any] | None = None,
    ) -> None:
        """`configuration` is the whole configuration of a published prior, so that it is rebuilt from its own file and
        not from the defaults of the `transformers` installed; None: from the other arguments.

        Raises:
            UserError: an architecture that is unknown or cannot serve, or an unknown key in `extra`.
        """
        super().__init__()
        size = {"layers": layers, "width": width, "heads": heads, "dropout": dropout, "extra": extra}
        if configuration is None:
            configuration = backbone.configure(architecture, **size, length=layout.num_tokens)
        self.layout, self.num_classes = layout, num_classes
        self.params = {"architecture": architecture, **size, "configuration": configuration}

        offsets = group_offsets(layout)
        self.token = nn.Embedding(int(offsets[-1]) + 1, width)  # the last row stands before the first token
        self.place = nn.Embedding(int(layout.places.amax(0).add(1).sum()), width)
        self.label = nn.Embedding(num_classes + 1, width)
        for table in (self.token, self.place, self.label):
            nn.init.normal_(table.weight, std=0.02)
        self.backbone = backbone.build(configuration, layout.num_tokens)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, level.codebook_size) for _ in range(level.depth)) for level in layout.levels
        )
        for heads_of_level in self.heads:
            start_heads(heads_of_level)

        shifts = torch.cat([torch.zeros(1, dtype=torch.int64), layout.places.amax(0).add(1).cumsum(0)[:-1]])
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("coordinates", layout.places + shifts, persistent=False)

    def embed(self, index: Tensor, coordinates: Tensor, labels: Tensor) -> Tensor:
        """The backbone's inputs: rows of the token table (B, n), coordinates (n, 4), labels (B,) -> (B, n, width)."""
        places = self.place(coordinates).sum(-2)
        return self.dropout(self.token(index) + places + self.label(labels)[:, None])

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, N, V), teacher-forced: each token's given all before it; -inf beyond its K."""
        labels = fill_labels(labels, tokens, self.num_classes)
        start = self.offsets[-1].expand(len(tokens), 1)
        index = torch.cat([start, (tokens + self.offsets[:-1])[:, :-1]], dim=1)
        hidden = self.dropout(backbone.hidden_states(self.backbone, self.embed(index, self.coordinates, labels)))
        parts = zip(self.heads, self.layout.slices(), strict=True)
        return torch.cat([self._read(heads, hidden[:, part]) for heads, part in parts], dim=1)

    def _read(self, heads: nn.ModuleList, hidden: Tensor) -> Tensor:
        """One level's hidden states (B, n, width) to logits (B, n, V), each depth by its own head."""
        by_depth = hidden.unflatten(1, (-1, len(heads)))
        logits = [project(head, by_depth[:, :, depth]) for depth, head in enumerate(heads)]
        return widen(torch.stack(logits, dim=2).flatten(1, 2), self.layout.vocabulary)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Exact nats a token, (B, N)."""
        return token_nll(self.logits(tokens, labels), tokens)

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Mean nats a token, a scalar: the training loss."""
        return self.nll(tokens, labels).mean()

    def start(self, labels: Tensor, context: None = None) -> TransformerState:
        """Begin decoding one sequence for each label (B,); the null label is num_classes."""
        refuse_context(context)
        return TransformerState(labels, backbone.new_cache(self.backbone))

    @torch.no_grad()
    def step(self, state: TransformerState, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token, given the tokens (B,) just chosen (None at first)."""
        at = state.position
        check_step(at, tokens, self.layout)
        index = self.offsets[-1].expand(len(state.labels)) if tokens is None else tokens + self.offsets[at - 1]
        embedding = self.embed(index[:, None], self.coordinates[at : at + 1], state.labels)[:, 0]
        hidden = self.dropout(backbone.next_hidden(self.backbone, embedding, state.cache))
        state.position += 1
        level, _, _, depth = self.layout.places[at].tolist()
        return widen(project(self.heads[level][depth], hidden), self.layout.vocabulary)
