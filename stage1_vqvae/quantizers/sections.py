"""Classes that the parameters of quantizers extend. Without torch, because parameters are checked without it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tessera.parameters.sections import Misfit, NonNegative, Positive, PositiveFloat, Section, nested_choice

PACKAGE = "stage1_vqvae.quantizers"
# Bits of the largest codebook. Codes are counted in tables; `grouped` offers several smaller codebooks beyond this
# size.
MOST_BITS = 24

Sizes = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
EstimatorName = Literal["straight_through", "rotation", "diveq"]
Threshold = Annotated[float, Field(ge=0, lt=1)]


class QuantizerParams(Section):
    """The parameters of one quantizer.

    Attributes:
        can_draw: whether codes can be drawn at random for the prior's extra passes.
        no_residual: the reason why a residual quantizer cannot have this quantizer inside; None if it can. An option
            that can sets None, and its module takes the argument `inside_residual`.
        approximates: whether codes approximate the vectors that they stand for, so that a rest can be coded again
            (`stage1_vqvae.scales`). It is asked less than by `no_residual`: a learned layer there fits the codes.
        revives_learned_codes: whether unused codes are revived although only the decoder's gradient places codes.
    """

    can_draw: ClassVar[bool] = False
    no_residual: ClassVar[str | None] = "it does not say that its codes approximate its vectors"
    approximates: ClassVar[bool] = False
    revives_learned_codes: ClassVar[bool] = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """The codebook's size: one number for all levels, or one number per level, coarsest first."""
        raise NotImplementedError

    @property
    def innermost(self) -> QuantizerParams:
        """The parameters of the quantizer that makes the codes. It is this one, unless another one is inside."""
        return self


class TableParams(QuantizerParams):
    """The parameters of a quantizer with a table of codes. `codebook_size` is one number, or one per level."""

    codebook_size: Sizes
    codebook_dim: Positive

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)


class BinaryParams(QuantizerParams):
    """The parameters of a quantizer whose codes are signs: LFQ and BSQ."""

    refuses: ClassVar[dict[str, str]] = {"gradient_estimator": "a sign passes the gradient straight through"}
    approximates: ClassVar[bool] = True
    bits: Annotated[int, Field(ge=1, le=MOST_BITS)]
    commitment_cost: NonNegative
    entropy_cost: NonNegative
    entropy_temperature: PositiveFloat
    diversity: NonNegative
    entropy_group_bits: Annotated[int, Field(ge=1, le=14)]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2**self.bits,)


class WrapperParams(QuantizerParams):
    """The parameters of a quantizer made of other quantizers of one kind, which `quantizer` chooses (see `inner`)."""

    quantizer: Any

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.quantizer.chosen.sizes

    @property
    def can_draw(self) -> bool:
        return self.quantizer.chosen.can_draw

    @property
    def approximates(self) -> bool:
        return self.quantizer.chosen.approximates

    @property
    def innermost(self) -> QuantizerParams:
        return self.quantizer.chosen.innermost

    def fits_together(self) -> None:
        try:
            self.quantizer.fits_together()
        except Misfit as error:
            raise Misfit(error.reason, "quantizer", *error.path) from None


def inner(refused: dict[str, str]) -> type[Any]:
    """The choice of the quantizer inside a wrapper.

    Args:
        refused: names of quantizers that the wrapper does not take, each with the reason.
    """
    return nested_choice(PACKAGE, refused)
