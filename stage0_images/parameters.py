"""Parameters of `prepare`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tessera.parameters.sections import Count, Fraction, Positive, Section

Byte = Annotated[int, Field(ge=0, le=255)]


class Preparation(Section):
    """What an image becomes. A VQ-VAE keeps these values, so that another image can be prepared like its own.

    `max_pixels`: an image with more is refused before it is decoded.
    """

    height: Positive
    width: Positive
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]
    background: tuple[Byte, Byte, Byte]
    max_pixels: Positive


class DataParams(Preparation):
    """Where the images come from and what they become; meanings stand beside each value in params.yaml."""

    source: str
    watch: str
    revision: str | None
    configuration: str | None
    image_column: str | None
    label_column: str | None
    use_labels: bool
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Count
    max_bad_fraction: Fraction

    def preparation(self) -> dict[str, Any]:
        """The values of `Preparation`, as JSON values."""
        return self.model_dump(mode="json", include=set(Preparation.model_fields))
