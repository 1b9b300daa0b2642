"""The embedding of labels."""

from __future__ import annotations

from torch import nn


class LabelEmbedding(nn.Embedding):
    """A vector for each class, and one for the null label, which comes last."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes + 1, width)
