"""Priors without training: the uniform one that stage 1 assumes, and counts, which learning must beat."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common.codes import CodeLayout
from stage2_prior.priors.base import Autoregressive
from stage2_prior.priors.smoothing import smooth

LARGEST_TABLE = 2**27  # entries; fitted, each takes some 40 bytes


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


class Uniform(Table):
    """Every code equally likely, log K nats a token: the prior that the VQ-VAE was trained under.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", section 3.1.
    """

    uses_labels = False

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0) -> None:
        super().__init__(layout, num_classes, first)
        self.register_buffer("table", uniform_table(layout)[None, self.given :], persistent=False)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """As the base's."""
        sizes = self.layout.codebook_sizes[self.given :].to(self.table)
        return sizes.log().expand(len(tokens), -1)


class Counts(Table):
    """A histogram of the training codes for each class and position, smoothed towards coarser histograms.

    It knows everything that a token's class and place say, and nothing that other tokens say: what a learned prior
    adds is the difference. Its table is (num_classes + 1, n, V), and so are its counts while it is fitted; where that
    would be above `LARGEST_TABLE`, it leaves classes out and is (1, n, V).
    """

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0) -> None:
        super().__init__(layout, num_classes, first)
        table = uniform_table(layout)[self.given :]
        self.uses_labels = (num_classes + 1) * table.numel() <= LARGEST_TABLE
        self.register_buffer("table", table.repeat(num_classes + 1 if self.uses_labels else 1, 1, 1))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Count the training codes and smooth them; a row with the null label, or without labels, counts for places
        only.

        Raises:
            ValueError: a token beyond its codebook.
        """
        shape, sizes = self.table.shape, self.layout.codebook_sizes[self.given :]
        null = shape[0] - 1
        counts = torch.zeros(shape, dtype=torch.int64)
        flat, place = counts.view(-1), torch.arange(shape[1]) * shape[2]
        for tokens, labels in batches:
            tokens, labels = tokens.cpu()[:, self.given :], self.fill_labels(labels, tokens).cpu() % shape[0]
            if ((tokens < 0) | (tokens >= sizes)).any():
                raise ValueError("a training code lies outside its codebook")
            index = place + tokens
            flat.index_add_(0, (index + null * shape[1] * shape[2]).flatten(), torch.ones_like(tokens).flatten())
            known = labels != null
            index = index[known] + labels[known, None] * shape[1] * shape[2]
            flat.index_add_(0, index.flatten(), torch.ones_like(index).flatten())
        self.table.copy_(smooth(counts, self.layout.places[self.given :], sizes))
