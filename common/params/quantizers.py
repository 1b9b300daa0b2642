"""Parameters of the quantizers. Each section tells by `sizes` what codebooks it leads to."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.params.base import Choice, Count, Decay, Nested, NonNegative, Positive, PositiveFloat, Section

Sizes = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
Estimator = Literal["straight_through", "rotation", "diveq"]
MOST_BITS = 24  # of a codebook: codes are counted, and beyond, `grouped` gives several smaller ones
Threshold = Annotated[float, Field(ge=0, lt=1)]


class Quantizer(Section):
    """What every section tells: whether codes may be drawn at random, and why it cannot quantize a residual, if so."""

    draws: ClassVar[bool] = False
    no_residual: ClassVar[str | None] = None
    sizes_path: ClassVar[str] = "codebook_size"  # the key that `sizes` come from

    @property
    def innermost(self) -> Quantizer:
        """The section of what makes codes: itself, but for a wrapper."""
        return self


class Wrapper(Section):
    """A quantizer of quantizers: what it tells is what the one inside tells."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.quantizer.chosen.sizes

    @property
    def sizes_path(self) -> str:
        return f"quantizer.{self.quantizer.name}.{self.quantizer.chosen.sizes_path}"

    @property
    def draws(self) -> bool:
        return self.quantizer.chosen.draws

    @property
    def innermost(self) -> Quantizer:
        return self.quantizer.chosen.innermost


class Table(Quantizer):
    """A quantizer with a table of codes; `codebook_size` is one number or one per level, coarsest first."""

    codebook_size: Sizes
    codebook_dim: Positive

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)


class VQParams(Table):
    projection_dim: Positive | None
    distance: Literal["euclidean", "cosine"]
    codebook_update: Literal["ema", "gradient"]
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    codebook_cost: NonNegative
    entropy_bonus: NonNegative
    entropy_temperature: PositiveFloat
    gradient_estimator: Estimator
    diveq_variance: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold

    @property
    def decoder_learned(self) -> bool:
        """Whether codes are where the decoder wants them, and not at the means of their vectors."""
        return self.codebook_update == "gradient" and not self.codebook_cost

    @model_validator(mode="after")
    def codes_are_trained(self) -> VQParams:
        costs = self.codebook_cost or self.entropy_bonus
        if self.codebook_update == "gradient" and self.gradient_estimator != "diveq" and not costs:
            raise ValueError(
                f"nothing would train the codes: {self.gradient_estimator} passes them no gradient and codebook_cost "
                "is 0; set codebook_cost (1 is the paper's), gradient_estimator: diveq, or codebook_update: ema"
            )
        return self


class SoftEMParams(Table):
    draws: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        "gradient_estimator": "the decoder gets the mean of drawn codes, to which only straight_through applies",
    }
    samples: Positive
    ema_decay: Decay
    ema_epsilon: NonNegative
    commitment_cost: NonNegative
    start: Literal["kmeans", "normal"]
    kmeans_rounds: Count
    revival_threshold: Threshold


class GumbelParams(Table):
    draws: ClassVar[bool] = True
    refuses: ClassVar[dict[str, str]] = {
        "gradient_estimator": "the gradient goes through the relaxed weights of the codes themselves",
    }
    no_residual: ClassVar[str | None] = "its codes approximate no vector, so that nothing is left over"

    temperature: PositiveFloat
    final_temperature: PositiveFloat
    anneal_steps: Positive
    hard: bool
    kl_cost: NonNegative


class FSQParams(Quantizer):
    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "rounding passes the gradient straight through"}
    levels: Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)]

    @field_validator("levels")
    @classmethod
    def countable(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(levels) > 2**MOST_BITS:
            raise ValueError(f"{math.prod(levels)} codes are more than 2**{MOST_BITS}; put smaller ones into `grouped`")
        return levels

    @property
    def sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)


class BinaryParams(Quantizer):
    """LFQ and BSQ."""

    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "a sign passes the gradient straight through"}
    bits: Annotated[int, Field(ge=1, le=MOST_BITS)]
    commitment_cost: NonNegative
    entropy_cost: NonNegative
    entropy_temperature: PositiveFloat
    diversity: NonNegative
    entropy_group_bits: Annotated[int, Field(ge=1, le=14)]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2**self.bits,)


class BSQParams(BinaryParams):
    no_residual: ClassVar[str | None] = (
        "the residual of a unit vector is no unit vector; lfq has the same signs without the sphere"
    )


class SimVQParams(Table):
    commitment_cost: NonNegative
    gradient_estimator: Estimator
    diveq_variance: NonNegative


class IBQParams(Table):
    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "the gradient goes through the softmax over all codes"}
    no_residual: ClassVar[str | None] = (
        "its code is the one with the largest product, not the nearest, so that what is left over need not be smaller"
    )

    codebook_cost: NonNegative
    entropy_cost: NonNegative
    entropy_temperature: PositiveFloat


class Inner(Nested):
    """The quantizer inside another."""

    not_inside: ClassVar[dict[str, str]]  # quantizers that cannot be here, and why

    vq: VQParams | None = None
    soft_em: SoftEMParams | None = None
    gumbel: GumbelParams | None = None
    fsq: FSQParams | None = None
    lfq: BinaryParams | None = None
    bsq: BSQParams | None = None
    simvq: SimVQParams | None = None
    ibq: IBQParams | None = None

    @field_validator("name", mode="before", check_fields=False)
    @classmethod
    def may_be_inside(cls, name: Any) -> Any:
        if isinstance(name, str) and name in cls.not_inside:
            raise ValueError(f"{name} cannot be here: {cls.not_inside[name]}")
        return name


class ResidualInner(Inner):
    not_inside: ClassVar[dict[str, str]] = {
        "residual": "a residual of residuals is one of more depths; raise depth",
        "grouped": "put the residual inside the groups: name grouped, and grouped.quantizer.name residual",
    }
    name: Literal["vq", "soft_em", "gumbel", "fsq", "lfq", "bsq", "simvq", "ibq"]


class ResidualParams(Wrapper):
    depth: Positive
    share_codebook: bool
    quantizer: ResidualInner

    @model_validator(mode="after")
    def leaves_a_residual(self) -> ResidualParams:
        name, inner, reason = self.quantizer.name, self.quantizer.chosen, self.quantizer.chosen.no_residual
        if name == "vq" and inner.distance == "cosine":
            reason = "with distance cosine, the residual of a unit vector is no unit vector"
        if name == "vq" and inner.projection_dim is not None:
            reason = "with projection_dim, the residual would leave the projection; lower codebook_dim instead"
        if reason:
            raise ValueError(f"a residual cannot have quantizer {name}: {reason}")
        return self


class GroupedInner(Inner):
    not_inside: ClassVar[dict[str, str]] = {"grouped": "groups of groups are more groups; raise groups"}
    name: Literal["vq", "soft_em", "gumbel", "fsq", "lfq", "bsq", "simvq", "ibq", "residual"]
    residual: ResidualParams | None = None


class GroupedParams(Wrapper):
    groups: Positive
    share_codebook: bool
    quantizer: GroupedInner


class QuantizerParams(Choice):
    name: Literal["vq", "residual", "grouped", "soft_em", "gumbel", "fsq", "lfq", "bsq", "simvq", "ibq"]
    vq: VQParams
    residual: ResidualParams
    grouped: GroupedParams
    soft_em: SoftEMParams
    gumbel: GumbelParams
    fsq: FSQParams
    lfq: BinaryParams
    bsq: BSQParams
    simvq: SimVQParams
    ibq: IBQParams
