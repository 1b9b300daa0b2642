"""What the parameters of the objective's terms have in common. Imports no torch: parameters are checked without it."""

from __future__ import annotations

from typing import ClassVar

from tessera.features.networks.sections import features_choice
from tessera.parameters.sections import Misfit, NonNegative, Section, Terms

PACKAGE = "stage1_vqvae.objectives"
# The choice of a frozen network by which a term is computed.
TrainedAgainst = features_choice(
    {
        "none": "the term needs a network",
        "classifier": "stage 1 does not depend on the run's classifier; choose a network that was trained elsewhere",
    }
)


def check_part(side: int | None, shape: tuple[int, int, int]) -> None:
    """Refuse a random part of images (C, H, W) that is larger than they are, by a `Misfit`."""
    if side is not None and side > min(shape[1:]):
        raise Misfit(
            f"{side} pixels of images of {shape[1]}x{shape[2]}; give at most {min(shape[1:])}, or null", "part"
        )


class TermParams(Section):
    """Parameters of every term.

    Attributes:
        weight: by which the term is multiplied before it is added to the distortion; 0: there is no such term.
        opposed: whether the term has parameters of its own that are trained against the decoder.
    """

    opposed: ClassVar[bool] = False

    weight: NonNegative

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (C, H, W) for which there is no such term.

        Raises:
            Misfit: with the reason.
        """


class ObjectiveTerms(Terms):
    """The terms that are added to the distortion when a decoder is trained."""

    package: ClassVar[str] = PACKAGE
    published: ClassVar[bool] = False  # a published model has none of them

    def fits_training(self, patience: int | None) -> None:
        """Refuse patience beside a term that is trained against the decoder: the newest weights are published then.

        Raises:
            Misfit: with the reason, and its place in the training's section.
        """
        if patience is not None and any(part.opposed for part in self.on.values()):
            raise Misfit(
                f"{patience}, but no validation figure measures what is trained against a discriminator, so that "
                "nothing could run out of patience; set it to null",
                "training",
                "patience",
            )

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (C, H, W) for which a term that is on cannot be computed.

        Raises:
            Misfit: with the reason.
        """
        for name, part in self.on.items():
            try:
                part.fits_images(shape)
            except Misfit as error:
                raise Misfit(error.reason, name, *error.path) from None
