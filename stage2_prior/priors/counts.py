"""The prior `counts`: counted frequencies of the codes, the baseline that a learned prior must beat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from stage2_prior.priors.sections import PriorParams
from stage2_prior.priors.smoothing import smooth
from stage2_prior.priors.tables import Table, uniform_table
from tessera.codes.layout import CodeLayout

LARGEST_TABLE = 2**27  # entries; each takes about 40 bytes while the table is fitted


class Parameters(PriorParams):
    """The section `counts` of params.yaml. The smoothing is not in it: it is fitted on the training codes."""

    trained: ClassVar[bool] = False


class Counts(Table):
    """A histogram of the training codes for each class and position, smoothed towards coarser histograms.

    Its probabilities depend on everything about a token but the other tokens. So the difference to a learned prior is
    what that prior has learned about how codes go together.

    The table is (num_classes + 1, n, V). If this would have more than `LARGEST_TABLE` entries, classes are left out,
    and the table is (1, n, V).
    """

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0) -> None:
        super().__init__(layout, num_classes, first)
        table = uniform_table(layout)[self.given_tokens :]
        self.uses_labels = (num_classes + 1) * table.numel() <= LARGEST_TABLE
        self.register_buffer("table", table.repeat(num_classes + 1 if self.uses_labels else 1, 1, 1))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Counts the training codes and smooths the counts, see `Prior.fit`.

        A row without a class (the null label, or no labels) counts in the histograms of positions only.

        Raises:
            ValueError: a token lies outside its codebook.
        """
        shape, sizes = self.table.shape, self.layout.codebook_sizes[self.given_tokens :]
        null = shape[0] - 1
        counts = torch.zeros(shape, dtype=torch.int64)
        flat, place = counts.view(-1), torch.arange(shape[1]) * shape[2]
        for tokens, labels in batches:
            tokens, labels = tokens.cpu()[:, self.given_tokens :], self.fill_labels(labels, tokens).cpu() % shape[0]
            if ((tokens < 0) | (tokens >= sizes)).any():
                raise ValueError("a training code lies outside its codebook")
            index = place + tokens
            flat.index_add_(0, (index + null * shape[1] * shape[2]).flatten(), torch.ones_like(tokens).flatten())
            known = labels != null
            index = index[known] + labels[known, None] * shape[1] * shape[2]
            flat.index_add_(0, index.flatten(), torch.ones_like(index).flatten())
        self.table.copy_(smooth(counts, self.layout.places[self.given_tokens :], sizes))
