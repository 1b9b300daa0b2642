"""What the likelihoods' parameters have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MinLogScale = Annotated[float, Field(ge=-30, le=10)]  # float32 would overflow far beyond either end
