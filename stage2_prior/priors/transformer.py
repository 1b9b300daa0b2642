"""A causal transformer over the sequence of codes: any causal language model of `transformers`, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stage2_prior.priors import backbone
from stage2_prior.priors.base import Autoregressive
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import DecodingEnds, SequenceEnds
from tessera.codes.layout import CodeLayout


class Parameters(AttentionParams):
    """Parameters of `transformer`.

    `architecture`: a causal model type of `transformers`. `extra`: further keys of its configuration.
    """

    architecture: str
    extra: dict[str, Any]


@dataclass
class TransformerState:
    """A decoding state: the ends, the keys and values so far, the last of the given levels' tokens."""

    ends: DecodingEnds
    cache: backbone.Cache
    last: Tensor | None


class Transformer(Autoregressive):
    """p(codes | label) in the layout's order: all levels in one sequence, so a fine token sees every coarse one.

    The input that predicts a token is the embedding of the token before it, plus embeddings of the level, row, column
    and depth of the token to be predicted, plus the label's, at every position.

    Source: Esser, Rombach and Ommer 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.2 (a
    transformer over a VQ model's codes).
    """

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
        first: int = 0,
    ) -> None:
        """`configuration` is the whole configuration of a published prior, so that it is rebuilt from its own file and
        not from the defaults of the `transformers` installed; None: from the other arguments.

        Raises:
            UserError: an architecture that is unknown or cannot serve, or an unknown key in `extra`.
        """
        super().__init__(layout, num_classes, first)
        new = configuration is None
        if new:
            size = {"layers": layers, "width": width, "heads": heads, "dropout": dropout, "extra": extra}
            configuration = backbone.configure(architecture, **size, length=layout.num_tokens)
        self.settled["configuration"] = configuration
        self.ends = SequenceEnds(layout, num_classes, first, width, dropout)
        self.backbone = backbone.build(configuration, layout.num_tokens if new else 0)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        labels = self.fill_labels(labels, tokens)
        hidden = backbone.hidden_states(self.backbone, self._inputs(tokens, labels))
        return self.ends.read(hidden[:, self.given :])

    def _inputs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Inputs (B, n, width) of the first n places: what stands before each of the tokens (B, n)."""
        rows = self.ends.rows(tokens)
        start = torch.full_like(rows[:, :1], self.ends.special)
        return self.ends.embed(torch.cat([start, rows[:, :-1]], dim=1), slice(rows.shape[1]), labels)

    def begin(self, labels: Tensor, context: Tensor) -> TransformerState:
        ends, cache = (
            DecodingEnds(self.ends, labels),
            backbone.Cache(self.backbone, len(labels), self.layout.num_tokens),
        )
        if not self.given:
            return TransformerState(ends, cache, None)
        cache.extend(self._inputs(context, labels))
        return TransformerState(ends, cache, context[:, -1])

    def advance(self, state: TransformerState, position: int, tokens: Tensor | None) -> Tensor:
        tokens = state.last if tokens is None else tokens
        inputs = state.ends.enter(state.ends.token(tokens, position - 1), position)
        return state.ends.read(state.cache.extend(inputs[:, None])[:, 0], position)

    def checkpoint_gradients(self) -> None:
        """As the base's.

        Raises:
            UserError: the architecture cannot.
        """
        backbone.checkpoint_gradients(self.backbone)
