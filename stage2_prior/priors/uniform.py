"""The prior `uniform`, under which the VQ-VAE was trained."""

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
    """Every code is equally likely: log K nats per token. The VQ-VAE was trained under this prior.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", section 3.1.
    """

    uses_labels = False

    def __init__(self, layout: CodeLayout, num_classes: int, *, first: int = 0) -> None:
        super().__init__(layout, num_classes, first)
        self.register_buffer("table", uniform_table(layout)[None, self.given_tokens :], persistent=False)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """log K of each token, see `Prior.nll`."""
        sizes = self.layout.codebook_sizes[self.given_tokens :].to(self.table)
        return sizes.log().expand(len(tokens), -1)
