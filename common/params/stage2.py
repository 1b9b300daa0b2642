"""Parameters of the priors. Each trained prior carries its own training section: swapping one is one edit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.params.base import Choice, Fraction, Positive, Section
from common.params.training import TrainingParams

Odd = Annotated[int, Field(ge=3)]


class PriorTrainingParams(TrainingParams):
    """`label_dropout`: chance that a label is replaced by the null label; `extra_pass_fraction`: chance that an
    image's codes come from an extra (flipped or shifted) pass."""

    label_dropout: Fraction
    extra_pass_fraction: Fraction


class UniformParams(Section):
    """The uniform prior has no parameters."""


class CountsParams(Section):
    """The counts prior has no parameters: its smoothing is fitted on the training codes."""


class PixelCNNParams(Section):
    layers: Positive
    channels: Positive
    kernel_size: Odd
    dropout: Annotated[float, Field(ge=0, lt=1)]
    training: PriorTrainingParams

    @model_validator(mode="after")
    def odd_kernel(self) -> PixelCNNParams:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        return self


class TransformerParams(Section):
    """`architecture` is a causal model type of `transformers`; `extra` passes further keys to its configuration."""

    architecture: str
    layers: Positive
    width: Positive
    heads: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    extra: dict[str, Any]
    training: PriorTrainingParams

    @model_validator(mode="after")
    def heads_divide_width(self) -> TransformerParams:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Stage2Params(Choice):
    name: Literal["uniform", "counts", "pixelcnn", "transformer"]
    uniform: UniformParams
    counts: CountsParams
    pixelcnn: PixelCNNParams
    transformer: TransformerParams
