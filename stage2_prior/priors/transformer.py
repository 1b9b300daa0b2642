"""The prior `transformer`: any causal language model of `transformers`, by name, over the sequence of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stage2_prior.priors import backbone
from stage2_prior.priors.architectures import unknown_architecture, unknown_key
from stage2_prior.priors.autoregressive import Autoregressive
from stage2_prior.priors.configuration import refused
from stage2_prior.priors.decoding.engine import Decoder
from stage2_prior.priors.decoding.model import LibraryDecoder, ModelDecoding
from stage2_prior.priors.sections import AttentionParams
from stage2_prior.priors.sequence import DecodingEnds, SequenceEnds
from tessera.codes.layout import CodeLayout
from tessera.parameters.sections import Misfit


class Parameters(AttentionParams):
    """The section `transformer` of params.yaml.

    `architecture`: a causal model type of `transformers`. `extra`: further keys of its configuration, which override
    all other values.
    """

    architecture: str
    extra: dict[str, Any]

    def fits_together(self) -> None:
        super().fits_together()
        if fault := unknown_architecture(self.architecture):
            raise Misfit(fault, "architecture")
        if found := refused(self.extra):
            raise Misfit(found[1], "extra", found[0])
        for key in self.extra:
            if fault := unknown_key(self.architecture, key):
                raise Misfit(fault, "extra", key)


@dataclass
class TransformerState:
    """What decoding keeps between tokens.

    Attributes:
        ends: the embeddings and the last layers, prepared for single tokens.
        decoder: the model's layers with the keys and values so far.
        last: the last token of the coarser levels, (B,), which predicts the first own token. None: there is none.
    """

    ends: DecodingEnds
    decoder: Decoder | LibraryDecoder
    last: Tensor | None


class Transformer(Autoregressive):
    """p(codes | label) from one causal transformer over one sequence of all tokens.

    The sequence takes the levels from coarse to fine, and within a level rows, columns and depths. A token therefore
    sees all tokens of coarser levels and all earlier tokens of its own level. A prior that is the link of a chain
    predicts only the levels from `first` on. The coarser levels are given to it.

    The input that predicts a token is a sum of embeddings: of the token before it, of the level, row, column and depth
    of the token to be predicted, and of the label. A special row stands for the token before the first one.

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
        """Arguments that are not named here: see `Parameters`.

        Args:
            configuration: the whole configuration of a published prior. The prior is then built again from its own
                file, not from the defaults of the installed `transformers`. None: the other arguments say it.

        Raises:
            UserError: the architecture is unknown or unfit, or a key in `extra` is unknown.
        """
        super().__init__(layout, num_classes, first)
        new = configuration is None
        if new:
            size = {"layers": layers, "width": width, "heads": heads, "dropout": dropout, "extra": extra}
            configuration = backbone.configure(architecture, **size, length=layout.num_tokens)
        self.resolved_params["configuration"] = configuration
        self.ends = SequenceEnds(layout, num_classes, first, width, dropout)
        self.backbone = backbone.build(configuration, layout.num_tokens if new else 0)
        self.decoding = ModelDecoding(self.backbone)

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Autoregressive.logits`."""
        labels = self.fill_labels(labels, tokens)
        hidden = backbone.hidden_states(self.backbone, self._inputs(tokens, labels))
        return self.ends.read(hidden[:, self.given_tokens :])

    def _inputs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The inputs (B, n, width) that predict the first n tokens (B, n), each from the token before it."""
        rows = self.ends.rows(tokens)
        start = torch.full_like(rows[:, :1], self.ends.special)
        return self.ends.embed(torch.cat([start, rows[:, :-1]], dim=1), slice(rows.shape[1]), labels)

    def begin(self, labels: Tensor, coarser: Tensor) -> TransformerState:
        """See `Autoregressive.begin`. The coarser levels' tokens go through the model at once."""
        ends = DecodingEnds(self.ends, labels)
        decoder = self.decoding.decoder(len(labels), self.layout.num_tokens)
        if not self.given_tokens:
            return TransformerState(ends, decoder, None)
        decoder.extend(self._inputs(coarser, labels))
        return TransformerState(ends, decoder, coarser[:, -1])

    def advance(self, state: TransformerState, position: int, tokens: Tensor | None) -> Tensor:
        """See `Autoregressive.advance`."""
        tokens = state.last if tokens is None else tokens
        inputs = state.ends.enter(state.ends.token(tokens, position - 1), position)
        return state.ends.read(state.decoder.extend(inputs[:, None])[:, 0], position)

    def checkpoint_gradients(self) -> None:
        """Switches the library's own gradient checkpointing on.

        Raises:
            UserError: the architecture has none.
        """
        backbone.checkpoint_gradients(self.backbone)
