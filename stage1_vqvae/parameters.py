"""Parameters of stage 1: the VQ-VAE, its training, and the extraction of codes."""

from __future__ import annotations

from typing import ClassVar, Literal

from stage1_vqvae.quantizers.sections import Estimator, Sizes, Threshold
from tessera.parameters.sections import (
    Choice,
    Count,
    Decay,
    Misfit,
    NonNegative,
    Positive,
    Section,
    choice,
)
from tessera.parameters.training import TrainingParams


class NetworkParams(Choice):
    """The choice of the network."""

    package: ClassVar[str] = "stage1_vqvae.networks"


class QuantizerParams(Choice):
    """The choice of the quantizer, and what quantizers share."""

    package: ClassVar[str] = "stage1_vqvae.quantizers"

    codebook_size: Sizes
    codebook_dim: Positive
    commitment_cost: NonNegative
    gradient_estimator: Estimator
    diveq_variance: NonNegative
    ema_decay: Decay
    ema_epsilon: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold


class LikelihoodParams(Choice):
    """The choice of the likelihood."""

    package: ClassVar[str] = "stage1_vqvae.likelihoods"


class AugmentationParams(Section):
    """Random mirror images and shifts of up to `shift` pixels."""

    horizontal_flip: bool
    shift: Count


class Stage1TrainingParams(TrainingParams):
    """`codebook_images`: training images for the codebook's start and for its re-estimation under a weight average."""

    codebook_images: Positive


class Stage1Params(Section):
    """What the VQ-VAE is and how it is trained."""

    network: choice(NetworkParams)
    quantizer: choice(QuantizerParams)
    likelihood: choice(LikelihoodParams)
    augmentation: AugmentationParams
    training: Stage1TrainingParams

    def fits_together(self) -> None:
        for name in ("network", "quantizer", "likelihood"):
            try:
                getattr(self, name).fits_together()
            except Misfit as error:
                raise Misfit(error.reason, name, *error.path) from None


class ExtractParams(Section):
    """Extra passes over the training images: mirrored, shifted by up to `shift` pixels, and with codes drawn anew."""

    horizontal_flip: bool
    shift: Count
    draws: Count
