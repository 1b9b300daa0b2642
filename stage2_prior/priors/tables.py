"""Priors that are a table of log-probabilities for each class and each token of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from stage2_prior.priors.autoregressive import Autoregressive
from tessera.codes.layout import CodeLayout


def uniform_table(layout: CodeLayout) -> Tensor:
    """Log-probabilities of the uniform prior, float32 (N, V).

    N is the number of tokens of an image, and V the size of the largest codebook. A token whose codebook has K codes
    has -log K (natural logarithm) for the indices below K, and -inf for the others.
    """
    sizes = layout.codebook_sizes[:, None]
    return torch.where(layout.allowed, -sizes.float().log(), torch.tensor(float("-inf")))


class Table(Autoregressive):
    """A prior whose probabilities depend on the class and on a token's index in the sequence, not on other tokens.

    Attributes:
        table: log-probabilities, (num_classes + 1, n, V). The first dimension is 1 if the class does not matter.
    """

    trained = False
    table: Tensor

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Log-probabilities, (B, n, V). The tokens (B, N) change nothing."""
        return self.table[self.fill_labels(labels, tokens) % len(self.table)]

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Prior.nll`. Single entries are read, because log-probabilities need no softmax."""
        rows = self.fill_labels(labels, tokens) % len(self.table)
        own = tokens[:, self.given_tokens :]
        return -self.table[rows[:, None], torch.arange(own.shape[1], device=own.device), own]

    def begin(self, labels: Tensor, coarser: Tensor) -> Tensor:
        """See `Autoregressive.begin`. The state is the labels."""
        return labels

    def advance(self, state: Tensor, position: int, tokens: Tensor | None) -> Tensor:
        """See `Autoregressive.advance`."""
        return self.table[state % len(self.table), position - self.given_tokens]
