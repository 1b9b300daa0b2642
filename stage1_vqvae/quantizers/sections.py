"""What the quantizers' parameters have in common. No torch: parameters are checked without it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tessera.parameters.sections import Misfit, NonNegative, Positive, PositiveFloat, Section, nested_choice

PACKAGE = "stage1_vqvae.quantizers"
MOST_BITS = 24  # of a codebook: codes are counted one by one; beyond, `grouped` gives several smaller codebooks

Sizes = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
Estimator = Literal["straight_through", "rotation", "diveq"]
Threshold = Annotated[float, Field(ge=0, lt=1)]


class QuantizerParams(Section):
    """Parameters of one quantizer. `sizes`: the codebook's size, one for all levels or one per level."""

    draws: ClassVar[bool] = False  # whether codes can be drawn at random for the prior's extra passes
    no_residual: ClassVar[str | None] = None  # why this quantizer cannot stand inside a residual one
    revives_learned_codes: ClassVar[bool] = False  # whether codes that only the decoder trains are revived

    @property
    def sizes(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def innermost(self) -> QuantizerParams:
        """The parameters of the quantizer that makes the codes: this one, unless it has another one inside."""
        return self


class TableParams(QuantizerParams):
    """A quantizer with a table of codes. `codebook_size` is one number, or one per level, coarsest first."""

    codebook_size: Sizes
    codebook_dim: Positive

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.codebook_size if isinstance(self.codebook_size, tuple) else (self.codebook_size,)


class BinaryParams(QuantizerParams):
    """A quantizer whose codes are signs: LFQ and BSQ."""

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


class WrapperParams(QuantizerParams):
    """A quantizer made of others, of one kind: `quantizer` (see `inner`) says which, and what it says holds."""

    quantizer: Any

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.quantizer.chosen.sizes

    @property
    def draws(self) -> bool:
        return self.quantizer.chosen.draws

    @property
    def innermost(self) -> QuantizerParams:
        return self.quantizer.chosen.innermost

    def fits_together(self) -> None:
        try:
            self.quantizer.fits_together()
        except Misfit as error:
            raise Misfit(error.reason, "quantizer", *error.path) from None


def inner(refused: dict[str, str]) -> type[Any]:
    """The choice of the quantizer inside a wrapper; `refused`: quantizers that cannot be there, and why."""
    return nested_choice(PACKAGE, refused)
