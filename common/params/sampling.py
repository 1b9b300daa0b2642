"""Parameters of sampling and of the classifier that judges samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.params.base import Count, NonNegative, Positive, Section
from common.params.training import TrainingParams


class SamplingParams(Section):
    """The default sampling parameters; null switches a filter off."""

    seed: Count
    images: Positive
    grid_columns: Positive
    temperature: NonNegative
    top_k: Positive | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None
    guidance_scale: NonNegative


class ClassifierParams(Section):
    channels: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    shift: Count
    training: TrainingParams
