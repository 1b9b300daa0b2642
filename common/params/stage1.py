"""Parameters of the VQ-VAE."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from common.params.base import Choice, Count, Decay, NonNegative, Positive, Section
from common.params.training import TrainingParams


class ConvParams(Section):
    """The 2017 convolutional network; `strides` lists downsampling factors, finest level first."""

    strides: Annotated[tuple[int, ...], Field(min_length=1)]
    channels: Annotated[int, Field(ge=2, multiple_of=2)]
    residual_blocks: Count
    residual_channels: Positive

    @field_validator("strides")
    @classmethod
    def powers_of_two(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
        if any(s < 2 or s & (s - 1) for s in strides):
            raise ValueError(f"every stride must be a power of two, at least 2, got {list(strides)}")
        return strides


class NetworkParams(Choice):
    name: Literal["conv"]
    conv: ConvParams


class VQParams(Section):
    """Vector quantizer; `codebook_size` is one number or one a level, coarsest first."""

    codebook_size: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
    codebook_dim: Positive
    codebook_update: Literal["ema", "gradient"]
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    codebook_cost: NonNegative
    gradient_estimator: Literal["straight_through", "rotation"]
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Annotated[float, Field(ge=0, lt=1)]


class QuantizerParams(Choice):
    name: Literal["vq"]
    vq: VQParams


class GaussianParams(Section):
    fit_images: Positive


class DiscretizedLogisticParams(Section):
    min_log_scale: float


class LikelihoodParams(Choice):
    name: Literal["gaussian", "discretized_logistic"]
    gaussian: GaussianParams
    discretized_logistic: DiscretizedLogisticParams


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
