"""What the parameters of discriminators have in common. Imports no torch: parameters are checked without it."""

from __future__ import annotations

from typing import ClassVar

from tessera.parameters.sections import Choice, Section

PACKAGE = "stage1_vqvae.discriminators"


class DiscriminatorParams(Section):
    """Parameters of every discriminator.

    Attributes:
        second_order: whether its gradient can be differentiated again, as a gradient penalty needs it.
    """

    second_order: ClassVar[bool] = True

    @property
    def matched(self) -> bool:
        """Whether the decoder minimises a distance beside the logits (`Discriminator.matching_loss`)."""
        return False

    def fits_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (C, H, W) that the discriminator cannot judge.

        Raises:
            Misfit: with the reason.
        """


class DiscriminatorChoice(Choice):
    """The choice of the discriminator."""

    package: ClassVar[str] = PACKAGE
