"""The prior `uniform`: every code is equally likely."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stage2_prior.priors.sections import PriorParams
from stage2_prior.priors.tables import Table, uniform_table
from tessera.codes.layout import CodeLayout


class Parameters(PriorParams):
    """The section `uniform` of params.yaml."""

    trained: ClassVar[bool] = False


class Uniform(Table):
    """Every code is equally likely, for any label: -log p is log K nats per token, with K the token's codebook size.

    The training of a VQ-VAE assumes this prior. Nothing is learned here.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", section 3.1.
    """

    uses_labels = False

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0) -> None:
        super().__init__(layout, num_classes, first)
        self.register_buffer("table", uniform_table(layout)[None, self.given_tokens :], persistent=False)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """log K nats for each own token, (B, n), see `Prior.nll`."""
        sizes = self.layout.codebook_sizes[self.given_tokens :].to(self.table)
        return sizes.log().expand(len(tokens), -1)
