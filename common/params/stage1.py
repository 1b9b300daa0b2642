"""Parameters of the VQ-VAE."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.params.base import Choice, Count, Positive, Section
from common.params.quantizers import QuantizerParams
from common.params.training import TrainingParams

MinLogScale = Annotated[float, Field(ge=-30, le=10)]  # far beyond either end float32 would overflow


class ConvParams(Section):
    """The 2017 convolutional network; `strides` lists downsampling factors, finest level first."""

    strides: Annotated[tuple[int, ...], Field(min_length=1)]
    channels: Positive
    stem_channels: Positive
    residual_blocks: Count
    residual_channels: Positive
    shortcut: bool

    @field_validator("strides")
    @classmethod
    def powers_of_two(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        if any(s < 2 or s & (s - 1) for s in strides):
            raise ValueError(f"every stride must be a power of two, at least 2, got {list(strides)}")
        return strides

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return math.prod(self.strides)

    @property
    def levels(self) -> int:
        return len(self.strides)


class ResNetParams(Section):
    """The VQGAN network; width at each resolution is `channels` times a multiplier."""

    channels: Positive
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=2)]
    residual_blocks: Positive
    attention_factors: tuple[Positive, ...]
    z_channels: Positive
    groups: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def fits(self) -> ResNetParams:
        if self.channels % self.groups:  # the first convolution's width, and so every multiple of it
            raise ValueError(
                f"groups {self.groups} must divide channels {self.channels}, of which widths are multiples"
            )
        factors = [2**i for i in range(len(self.multipliers))]
        if unknown := [f for f in self.attention_factors if f not in factors]:
            raise ValueError(f"attention_factors: {unknown[0]} is no downsampling factor here; choose from {factors}")
        return self

    @property
    def factor(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    levels: ClassVar[int] = 1


class ViTParams(Section):
    """ViT-VQGAN's transformers over patches of `patch` pixels a side."""

    patch: Positive
    width: Annotated[int, Field(ge=4, multiple_of=4)]
    layers: Positive
    heads: Positive
    mlp_ratio: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def heads_divide_width(self) -> ViTParams:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self

    @property
    def factor(self) -> int:
        return self.patch

    levels: ClassVar[int] = 1


class NetworkParams(Choice):
    name: Literal["conv", "resnet", "vit"]
    conv: ConvParams
    resnet: ResNetParams
    vit: ViTParams


class FittedScaleParams(Section):
    """Gaussian and Laplace."""

    fit_images: Positive


class DiscretizedLogisticParams(Section):
    min_log_scale: MinLogScale


class MixtureOfLogisticsParams(Section):
    components: Positive
    min_log_scale: MinLogScale


class LikelihoodParams(Choice):
    name: Literal["gaussian", "laplace", "discretized_logistic", "mixture_of_logistics"]
    gaussian: FittedScaleParams
    laplace: FittedScaleParams
    discretized_logistic: DiscretizedLogisticParams
    mixture_of_logistics: MixtureOfLogisticsParams


class AugmentationParams(Section):
    horizontal_flip: bool
    shift: Count


class Stage1TrainingParams(TrainingParams):
    """`codebook_images`: training images for the codebook's start and for its re-estimation under a weight EMA."""

    codebook_images: Positive


class Stage1Params(Section):
    network: NetworkParams
    quantizer: QuantizerParams
    likelihood: LikelihoodParams
    augmentation: AugmentationParams
    training: Stage1TrainingParams
