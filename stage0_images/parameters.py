"""Parameters of `prepare`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tessera.parameters.sections import Count, Fraction, Positive, Section

Byte = Annotated[int, Field(ge=0, le=255)]


class DataParams(Section):
    """Where the images come from and what they become; meanings stand beside each value in params.yaml."""

    source: str
    watch: str
    revision: str | None
    configuration: str | None
    image_column: str | None
    label_column: str | None
    use_labels: bool
    height: Positive
    width: Positive
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]
    background: tuple[Byte, Byte, Byte]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Count
    max_pixels: Positive
    max_bad_fraction: Fraction
