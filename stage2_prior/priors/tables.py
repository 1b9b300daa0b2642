"""A prior that is a table of log-probabilities by class and place."""

from __future__ import annotations

import torch
from torch import Tensor

from stage2_prior.priors.base import Autoregressive
from tessera.codes.layout import CodeLayout


def uniform_table(layout: CodeLayout) -> Tensor:
    """float32 (N, V): -log K, and -inf beyond K."""
    sizes = layout.codebook_sizes[:, None]
    return torch.where(layout.allowed, -sizes.float().log(), torch.tensor(float("-inf")))


class Table(Autoregressive):
    """Tokens that know their class and place only: `table` (1 or num_classes + 1, n, V) of log-probabilities."""

    trained = False
    table: Tensor

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, n, V): log-probabilities by class and place; tokens (B, N) change nothing."""
        return self.table[self.fill_labels(labels, tokens) % len(self.table)]

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """As the base's; by single entries, since log-probabilities need no softmax."""
        rows = self.fill_labels(labels, tokens) % len(self.table)
        own = tokens[:, self.given :]
        return -self.table[rows[:, None], torch.arange(own.shape[1], device=own.device), own]

    def begin(self, labels: Tensor, context: Tensor) -> Tensor:
        return labels

    def advance(self, state: Tensor, position: int, tokens: Tensor | None) -> Tensor:
        return self.table[state % len(self.table), position - self.given]
