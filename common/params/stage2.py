"""Parameters of the priors. Each trained prior carries its own training section: swapping one is one edit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from common.params.base import Choice, Count, Fraction, Nested, Positive, Section
from common.params.training import TrainingParams

Dropout = Annotated[float, Field(ge=0, lt=1)]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, got {value}")
    return value


Odd = Annotated[int, Field(ge=3), AfterValidator(_odd)]


class PriorTrainingParams(TrainingParams):
    """`label_dropout`: chance that a label is replaced by the null label; `extra_pass_fraction`: chance that an
    image's codes come from an extra (flipped or shifted) pass; `gradient_checkpointing`: blocks are computed again in
    the backward pass, which needs less memory and more time."""

    label_dropout: Fraction
    extra_pass_fraction: Fraction
    gradient_checkpointing: bool


class SplitSection(Section):
    """`largest_softmax`: codes of larger codebooks are modelled as several sub-tokens of at most so many values."""

    largest_softmax: Annotated[int, Field(ge=2)]


class UniformParams(SplitSection):
    """The uniform prior has no others."""


class CountsParams(SplitSection):
    """The counts prior has no others: its smoothing is fitted on the training codes."""


class PixelCNNNetwork(SplitSection):
    layers: Positive
    channels: Positive
    kernel_size: Odd
    dropout: Dropout


class PixelSNAILNetwork(SplitSection):
    """`heads`: of attention, 0 for none; `conditioning_blocks`: over the coarser levels' codes."""

    channels: Positive
    hidden_channels: Positive
    kernel_size: Odd
    blocks: Positive
    residuals: Positive
    heads: Count
    conditioning_blocks: Count
    dropout: Dropout

    @model_validator(mode="after")
    def heads_divide_attention(self) -> PixelSNAILNetwork:
        if self.heads and self.channels % (2 * self.heads):
            raise ValueError(f"channels {self.channels} must be a multiple of twice the heads {self.heads}")
        return self


class WidthSection(SplitSection):
    """A transformer's sizes."""

    layers: Positive
    width: Positive
    heads: Positive
    dropout: Dropout

    @model_validator(mode="after")
    def heads_divide_width(self) -> WidthSection:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class TransformerNetwork(WidthSection):
    """`architecture` is a causal model type of `transformers`; `extra` passes further keys to its configuration."""

    architecture: str
    extra: dict[str, Any]


class RQTransformerNetwork(WidthSection):
    """`layers` over positions, `depth_layers` over the codes of a position."""

    depth_layers: Positive


class MaskedNetwork(WidthSection):
    """`bound_draws`: masks an image by which the bound of its likelihood is estimated."""

    bound_draws: Annotated[int, Field(ge=2)]  # of one draw no error could be told


class PixelCNNParams(PixelCNNNetwork):
    training: PriorTrainingParams


class PixelSNAILParams(PixelSNAILNetwork):
    training: PriorTrainingParams


class TransformerParams(TransformerNetwork):
    training: PriorTrainingParams


class RQTransformerParams(RQTransformerNetwork):
    training: PriorTrainingParams


class MaskedParams(MaskedNetwork):
    training: PriorTrainingParams


class LinkParams(Nested):
    """One level's prior in a chain."""

    name: Literal["uniform", "counts", "pixelcnn", "pixelsnail", "transformer", "rq_transformer", "masked"]
    uniform: UniformParams | None = None
    counts: CountsParams | None = None
    pixelcnn: PixelCNNNetwork | None = None
    pixelsnail: PixelSNAILNetwork | None = None
    transformer: TransformerNetwork | None = None
    rq_transformer: RQTransformerNetwork | None = None
    masked: MaskedNetwork | None = None


class ChainParams(Section):
    """`links`: one prior per level, coarsest first."""

    links: Annotated[tuple[LinkParams, ...], Field(min_length=1)]
    training: PriorTrainingParams


class Stage2Params(Choice):
    name: Literal["uniform", "counts", "pixelcnn", "pixelsnail", "transformer", "rq_transformer", "masked", "chain"]
    uniform: UniformParams
    counts: CountsParams
    pixelcnn: PixelCNNParams
    pixelsnail: PixelSNAILParams
    transformer: TransformerParams
    rq_transformer: RQTransformerParams
    masked: MaskedParams
    chain: ChainParams

    def config(self) -> dict[str, Any]:
        """Name and parameters of the chosen prior, without its training: what it is built from."""
        values = {key: value for key, value in self.chosen.values().items() if key != "training"}
        if self.name == "chain":
            values["links"] = [{"name": link.name, "params": link.chosen.values()} for link in self.chain.links]
        return {"name": self.name, "params": values}
