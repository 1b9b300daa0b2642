"""Tessera: two-stage image generation with discrete latents.

`from tessera import TwoStagePipeline` gives the trained models as one object. The class is imported by its name, when
it is first asked for: the ground floor imports no stage, and otherwise the code of all stages would be code of each.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["TwoStagePipeline"]

if find_spec("tqdm") is None:  # one of the packages that every command needs
    raise ModuleNotFoundError(
        f"the packages that Tessera needs are not installed for {sys.executable}; activate their environment (source "
        ".venv/bin/activate), or install them (pip install -e .)"
    )


def __getattr__(name: str) -> Any:
    if name == "TwoStagePipeline":
        return import_module("sampling.pipeline").TwoStagePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
