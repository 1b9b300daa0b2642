"""Parameters of `prepare`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tessera import paths
from tessera.parameters.sections import Count, Fraction, Misfit, Positive, Section

Byte = Annotated[int, Field(ge=0, le=255)]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def absolute(source: str) -> Path:
    """A source as an absolute path, whether there is such a folder or not. "~" of an unknown user stays as it is."""
    return Path(os.path.abspath(os.path.expanduser(source)))


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] >= values[1]:
        raise ValueError(f"expected the value of black and then a larger one of white, got {list(values)}")
    return values


class Preparation(Section):
    """What an image becomes. A VQ-VAE keeps these values, so that another image can be prepared like its own.

    `grey_range`: the values that become black and white in grey images of more than 8 bits; values outside are clipped.
    None: 0, and the largest value that the file's bits hold. `max_pixels`: an image with more is refused before it is
    decoded.
    """

    height: Positive
    width: Positive
    channels: Literal[1, 3]
    fit: Literal["crop", "stretch"]
    background: tuple[Byte, Byte, Byte]
    grey_range: Annotated[tuple[float, float], AfterValidator(_rising)] | None
    max_pixels: Positive

    @classmethod
    def of_model(cls, values: dict[str, Any]) -> Preparation:
        """The values that a published VQ-VAE keeps. One from before `grey_range` existed has no such value.

        Raises:
            ValueError: they are not as `DataParams.preparation` gives them.
        """
        return cls.model_validate_json(json.dumps({"grey_range": None} | values))


class DataParams(Preparation):
    """Where the images come from and what they become; meanings stand beside each value in params.yaml."""

    source: Annotated[str, Field(min_length=1)]
    watch: Annotated[str, Field(min_length=1)]
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

    def fits_together(self) -> None:
        """Refuses a Hub id without a revision, and a source among the folders that the pipeline itself writes.

        A source is a local folder where `watch` is the same path. Whether the folder exists is not asked: later stages
        do not need it.
        """
        if self.source == "digits":
            return
        place = absolute(self.source)
        if os.path.abspath(self.watch) != str(place):
            if self.revision is None and HUB_ID.fullmatch(self.source):
                raise Misfit(
                    f"required for the Hub id {self.source!r}, so that a run can be repeated; give a commit (best), "
                    "tag or branch of the dataset. For a local folder, set data.watch to the folder",
                    "revision",
                )
            return
        place = Path(os.path.realpath(place))  # `Path.resolve` raises where links lead in a circle
        for folder in paths.WRITTEN:
            written = Path(os.path.realpath(folder))
            if place == written or written in place.parents or place in written.parents:
                raise Misfit(
                    f"{self.source!r} holds {folder}, or lies in it, which the pipeline itself writes; move the images "
                    "to a folder of their own",
                    "source",
                )
