"""What every prior is: a distribution over the tokens of a layout, given a label, or over its finer levels given the
coarser ones too."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage2_prior.priors.heads import LevelHeads
from tessera.codes.layout import CodeLayout

MEASURED_LOGITS = 2**28  # of one call of `nll`: a GB in float32, and a few of it at the peak


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, nats: logits (B, n, V), int64 tokens (B, n) -> (B, n)."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


class Prior(nn.Module):
    """p(codes | label) over the levels of a layout from `first` on, given the ones before.

    Tokens come as whole sequences (B, N) of the layout, the given levels' included; what is returned for each token is
    for this prior's own n, the last of them. A family that decodes token by token defines `logits`, `begin` and
    `advance`; `start` and `step` are the border in front of these two.
    """

    trained = True  # by gradients; otherwise `fit` takes training's place
    uses_labels = True  # whether labels change anything
    exact = True  # `nll` is -log p, not a bound of it
    noise = 0  # random numbers an image that `forward` takes
    null_label = True  # whether it knows the null label: not where training never showed it
    name: str  # of its option
    params: dict[str, Any]  # the arguments by which `build_prior` builds it, and builds it again

    def __init__(self, layout: CodeLayout, num_classes: int, first: int) -> None:
        super().__init__()
        self.layout, self.num_classes, self.first = layout, num_classes, first
        self.settled: dict[str, Any] = {}  # arguments that it has found out itself, for when it is built again
        self.given = layout.slices()[first].start  # tokens of the levels before `first`

    @property
    def own_tokens(self) -> int:
        """n: the tokens that it is a distribution over."""
        return self.layout.num_tokens - self.given

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Learn what is learned without gradients, from int64 tokens (B, N) below each one's K and labels (B,) or None.

        Nothing, and no batch is read, unless a family says otherwise. A family goes through `batches` once.
        """

    def fill_labels(self, labels: Tensor | None, tokens: Tensor) -> Tensor:
        """int64 labels (B,): those that came, or the null label (= num_classes) for every row of `tokens`."""
        return tokens.new_full((len(tokens),), self.num_classes) if labels is None else labels

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, n, V), teacher-forced: each token's given all before it; -inf beyond its K."""
        raise NotImplementedError

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Nats a token, (B, n); where not `exact`, an estimate of an upper bound."""
        return token_nll(self.logits(tokens, labels), tokens[:, self.given :])

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        """`nll`, and the variance of its sum over each image's tokens, (B,): 0 where `nll` is exact.

        `again`: which of many independent estimates, where it is one; `nll` is the first.
        """
        nats = self.nll(tokens, labels)
        return nats, nats.new_zeros(len(nats))

    def measured_at_once(self, batch_size: int) -> int:
        """Of how many sequences `nll` is computed at a time: `batch_size`, or fewer where their logits are many."""
        return max(1, min(batch_size, MEASURED_LOGITS // (self.layout.num_tokens * self.layout.vocabulary)))

    def forward(self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None) -> Tensor:
        """Mean nats a token, a scalar: the training loss. `noise`: uniforms (B, self.noise), where it takes any."""
        return self.nll(tokens, labels).mean()

    def lowered(self, dtype: torch.dtype) -> Prior:
        """A copy for decoding, its weights in a lower precision but for the last layers: their logits stay float32.

        Its `nll` is not that of the prior: bf16 has 8 bits.
        """
        copy = deepcopy(self)
        heads = {id(p) for module in copy.modules() if isinstance(module, LevelHeads) for p in module.parameters()}
        for tensor in copy.parameters():
            if id(tensor) not in heads:
                tensor.data = tensor.data.to(dtype)
        return copy.requires_grad_(False)

    def blocks(self) -> Iterable[nn.Module]:
        """What gradient checkpointing computes again, one after another."""
        return ()

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside `blocks` for the backward pass."""
        for block in self.blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@dataclass
class Decoding:
    """Where decoding some sequences stands: the next token's place, and what the family keeps."""

    position: int
    state: Any


class Autoregressive(Prior):
    """A prior that says one token after another."""

    def begin(self, labels: Tensor, context: Tensor) -> Any:
        """A state before the first of its own tokens: labels (B,), the given levels' tokens (B, self.given)."""
        raise NotImplementedError

    def advance(self, state: Any, position: int, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the token at a place of the sequence, given the one just before it, (B,); None at first."""
        raise NotImplementedError

    def start(self, labels: Tensor, context: Tensor | None = None) -> Decoding:
        """Begin decoding one sequence for each label.

        Args:
            labels: int64 (B,); the null label is num_classes.
            context: int64 (B, given), the tokens of the levels before `first`; None where there are none.

        Raises:
            ValueError: a context of another shape.
        """
        wanted = (len(labels), self.given)
        if context is None:
            context = labels.new_empty(len(labels), 0)
        if tuple(context.shape) != wanted:
            raise ValueError(f"expected the tokens of the coarser levels, {wanted}, got {tuple(context.shape)}")
        with torch.no_grad():
            return Decoding(self.given, self.begin(labels, context))

    @torch.no_grad()
    def step(self, decoding: Decoding, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token, given the tokens (B,) just chosen (None at first).

        Raises:
            ValueError: the sequence is complete, the first step is given tokens, or a later one is not.
        """
        position = decoding.position
        if position >= self.layout.num_tokens:
            raise ValueError(f"the sequence is complete: it has {self.layout.num_tokens} tokens")
        if (tokens is None) != (position == self.given):
            raise ValueError(
                f"token {position}: the first step takes no tokens, every later one the tokens just chosen"
            )
        decoding.position += 1
        return self.advance(decoding.state, position, tokens)
