"""What the parameters of priors have in common. Imports no torch, because parameters are checked without it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tessera.parameters.sections import LARGEST, Dropout, Misfit, Positive, Section

PACKAGE = "stage2_prior.priors"


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, got {value}")
    return value


Odd = Annotated[int, Field(ge=3, le=LARGEST), AfterValidator(_odd)]


def largest_prime_factor(number: int) -> int:
    """The largest prime number that divides a positive number; 1 for 1."""
    factor, largest = 2, 1
    while factor * factor <= number:
        while number % factor == 0:
            number, largest = number // factor, factor
        factor += 1
    return max(number, largest)


class PriorParams(Section):
    """The parameters that every prior has in params.yaml, except `training`.

    `largest_softmax`: the most values that one softmax chooses from. A code of a larger codebook is modelled as several
    sub-tokens, one after another, with at most so many values each.
    """

    trained: ClassVar[bool] = True  # trained by gradients, so that its section has the parameters `training`
    # Which of `decoding_steps`, `choice_temperature` and `order` of `sampling` the prior draws by. Others change no
    # sample. Who draws by `order` draws by `decoding_steps` where it is parallel.
    sampled_by: ClassVar[frozenset[str]] = frozenset()

    largest_softmax: Annotated[int, Field(ge=2, le=LARGEST)]

    def learns(self) -> bool:
        """Whether the prior is trained by gradients. A chain is if one of its links is."""
        return self.trained

    def draws_by(self) -> frozenset[str]:
        """`sampled_by` of this prior. A chain draws by what its links draw by."""
        return self.sampled_by

    def check_codebooks(self, sizes: tuple[int, ...]) -> None:
        """Refuses codebooks whose codes cannot be written as sub-tokens.

        Args:
            sizes: the codebook size of each level that the prior covers, coarsest first.

        Raises:
            Misfit: the size of a codebook above `largest_softmax` has a prime factor that is above it too.
        """
        for size in sizes:
            prime = largest_prime_factor(size)
            if prime > self.largest_softmax:
                raise Misfit(
                    f"{self.largest_softmax}, but a codebook has {size} codes, no product of numbers up to it; "
                    f"raise it to {prime}, or choose another codebook size, such as a power of 2",
                    "largest_softmax",
                )

    def arguments(self) -> dict[str, Any]:
        """The arguments of the prior's constructor, as JSON values: all parameters but those of its training."""
        return {name: value for name, value in self.values().items() if name != "training"}


class NetworkParams(PriorParams):
    """The size of a prior's network. Each prior says what one of its layers is."""

    layers: Positive
    width: Positive
    dropout: Dropout


class AttentionParams(NetworkParams):
    """The size of a transformer."""

    heads: Positive

    def fits_together(self) -> None:
        if self.width % self.heads:
            raise Misfit(f"width {self.width} must be a multiple of heads {self.heads}")
