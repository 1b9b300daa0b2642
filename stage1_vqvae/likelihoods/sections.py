"""Types that the parameters of likelihoods share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MinLogScale = Annotated[float, Field(ge=-30, le=10)]  # far outside this range, float32 would overflow
