"""The uniform prior, which training the VQ-VAE assumes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stage2_prior.priors.sections import PriorParams
from stage2_prior.priors.tables import Table, uniform_table
from tessera.codes.layout import CodeLayout


class Parameters(PriorParams):
    """Parameters of `uniform`."""

    trained: ClassVar[bool] = False


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
