"""Tessera: two-stage image generation with discrete latents.

`from tessera import TwoStagePipeline` gives the trained models as one object. The class is imported by its name, when
it is first asked for: the ground floor imports no stage, and otherwise the code of all stages would be code of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["TwoStagePipeline"]


def __getattr__(name: str) -> Any:
    if name == "TwoStagePipeline":
        return import_module("sampling.pipeline").TwoStagePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
