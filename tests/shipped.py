"""The parameters that ship, for tests that need most of them as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tessera.parameters import Params, load


@cache
def shipped() -> Params:
    """params.yaml as it ships, validated: presets/digits.yaml."""
    return load(Path(__file__).parents[1] / "presets" / "digits.yaml")


def parameters(path: str, **changes: Any) -> dict[str, Any]:
    """The values of a section or an option by its dotted path, with changes; "stage1_vqvae.quantizer.vq", for one."""
    return {**shipped().used(path), **changes}
