"""Priors without training: the uniform one that stage 1 assumes, and counts, which learning must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.codes import CodeLayout
from stage2_prior.priors.heads import check_step, fill_labels, refuse_context, token_nll
from stage2_prior.priors.smoothing import smooth


@dataclass
class TableState:
    """A decoding state: tokens are independent, so only the labels (B,) and the position matter."""

    labels: Tensor
    position: int = 0


def uniform_table(layout: CodeLayout) -> Tensor:
    """float32 (N, V): -log K, and -inf beyond K."""
    sizes = layout.codebook_sizes[:, None]
    return torch.where(layout.allowed, -sizes.float().log(), torch.tensor(float("-inf")))


class Uniform(nn.Module):
    """Every code equally likely, log K nats a token: the prior that the VQ-VAE was trained under.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", section 3.1.
    """

    trained = False

    def __init__(self, layout: CodeLayout, num_classes: int) -> None:
        super().__init__()
        self.layout, self.num_classes, self.params = layout, num_classes, {}
        self.register_buffer("table", uniform_table(layout), persistent=False)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Nothing to learn: the batches are not read."""

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, N, V): log-probabilities; tokens (B, N) and labels (B,) change nothing."""
        return self.table.expand(len(tokens), -1, -1)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Nats a token, (B, N)."""
        return token_nll(self.logits(tokens, labels), tokens)

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Mean nats a token, a scalar."""
        return self.nll(tokens, labels).mean()

    def start(self, labels: Tensor, context: None = None) -> TableState:
        """Begin decoding one sequence for each label (B,)."""
        refuse_context(context)
        return TableState(labels)

    def step(self, state: TableState, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token, given the tokens (B,) just chosen (None at first)."""
        check_step(state.position, tokens, self.layout)
        state.position += 1
        return self.table[state.position - 1].expand(len(state.labels), -1)


class Counts(nn.Module):
    """A histogram of the training codes for each class and position, smoothed towards coarser histograms.

    It knows everything that a token's class and place say, and nothing that other tokens say: what a learned prior
    adds is the difference. Its table is (num_classes + 1, N, V), and so are its counts while it is fitted.
    """

    trained = False

    def __init__(self, layout: CodeLayout, num_classes: int) -> None:
        super().__init__()
        self.layout, self.num_classes, self.params = layout, num_classes, {}
        self.register_buffer("table", uniform_table(layout).repeat(num_classes + 1, 1, 1))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Count the training codes in one pass and smooth them.

        Args:
            batches: int64 tokens (B, N) below each token's K, and int64 labels (B,) or None. A row with the null
                label, or without labels, counts for positions only.

        Raises:
            ValueError: a token beyond its codebook.
        """
        null, shape = self.num_classes, self.table.shape
        counts = torch.zeros(shape, dtype=torch.int64)
        flat, place = counts.view(-1), torch.arange(shape[1]) * shape[2]
        for tokens, labels in batches:
            tokens, labels = tokens.cpu(), fill_labels(labels, tokens, null).cpu()
            if ((tokens < 0) | (tokens >= self.layout.codebook_sizes)).any():
                raise ValueError("a training code lies outside its codebook")
            index = place + tokens
            flat.index_add_(0, (index + null * shape[1] * shape[2]).flatten(), torch.ones_like(tokens).flatten())
            known = labels != null
            index = index[known] + labels[known, None] * shape[1] * shape[2]
            flat.index_add_(0, index.flatten(), torch.ones_like(index).flatten())
        self.table.copy_(smooth(counts, self.layout))

    def logits(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """float32 (B, N, V): log-probabilities by class and position; tokens (B, N) change nothing."""
        return self.table[fill_labels(labels, tokens, self.num_classes)]

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Nats a token, (B, N)."""
        return token_nll(self.logits(tokens, labels), tokens)

    def forward(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Mean nats a token, a scalar."""
        return self.nll(tokens, labels).mean()

    def start(self, labels: Tensor, context: None = None) -> TableState:
        """Begin decoding one sequence for each label (B,); the null label is num_classes."""
        refuse_context(context)
        return TableState(labels)

    def step(self, state: TableState, tokens: Tensor | None) -> Tensor:
        """Logits (B, V) of the next token, given the tokens (B,) just chosen (None at first)."""
        check_step(state.position, tokens, self.layout)
        state.position += 1
        return self.table[state.labels, state.position - 1]
