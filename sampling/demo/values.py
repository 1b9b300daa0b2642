"""What the page's controls offer, and how their values become sampling settings. Knows no page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampling.demo.actions import EVERY
from sampling.options import value_of
from sampling.pipeline import TwoStagePipeline
from tessera.errors import printable

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # where a control's filter does nothing


def settings_of(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, from the controls' values by name.

    A text is read as the command line reads it, so that it may hold a value for each level: "0.9, 1.0". An empty
    control, and a filter that filters nothing, is None, which is also what the command line has without its option.
    """
    return {name: _setting(name, value) for name, value in shown.items()}


def shown(name: str, value: Any, several: bool) -> Any:
    """What stands in the control of a setting.

    Args:
        several: whether codes have several levels. The control then holds text.
    """
    if several:
        each = value if isinstance(value, list | tuple) else [value]
        return ", ".join("none" if one is None else str(one) for one in each)
    one = value[0] if isinstance(value, list | tuple) else value
    return OFF[name] if one is None else one


def choices_of(pipeline: TwoStagePipeline) -> list[tuple[str, int]]:
    """The classes to choose from, with their names; none where the model has no classes."""
    classes = pipeline.classes
    if not classes.count:
        return []
    found = [(printable(classes.name(number)), number) for number in classes.trained]
    null = [("no class in particular", classes.count)] if pipeline.prior.null_label else []
    return [("every class", EVERY), *found, *null]


def _setting(name: str, value: Any) -> Any:
    if isinstance(value, str) and name != "guidance_schedule":
        value = value_of(value) if value.strip() else None
    if name in OFF and value == OFF[name]:
        return None
    return int(value) if isinstance(value, float) and name == "top_k" and value.is_integer() else value
