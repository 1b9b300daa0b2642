"""Read params.yaml (YAML 1.2) into `Params`, and say plainly what is wrong with it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from common.errors import UserError
from common.params.root import Params


def _section_at(location: tuple) -> Any:
    """The model of the section in which a value lies."""
    model: Any = Params
    for key in location[:-1]:
        if isinstance(key, int):  # a place in a list of sections, which the field's type has led into
            continue
        annotation = model.model_fields[key].annotation
        model = next(part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields"))
    return model


ONE = ("int", "float", "constrained-int", "constrained-float")  # pydantic's names for what is no list


def _location(error: dict[str, Any]) -> tuple:
    """Where a fault is, without pydantic's names for the alternatives of a type."""
    return tuple(part for part in error["loc"] if isinstance(part, int) or ("[" not in part and part not in ONE))


def _relevant(error: dict[str, Any]) -> bool:
    """Where a value may be one or a list, it fails as both: only what is wrong with what it is counts."""
    if isinstance(error["input"], list | tuple):
        return error["loc"][-1] not in ONE
    return error["type"] != "tuple_type" or "[" not in str(error["loc"][-1])


def _describe(error: dict[str, Any], raw: Any) -> str:
    location = _location(error)
    path = ".".join(str(part) for part in location)
    if error["type"] == "missing":
        return f"{path}: missing"
    if error["type"] == "extra_forbidden":
        present, section, key = raw, _section_at(location), str(location[-1])
        if key in section.refuses:
            return f"{path}: does not apply, since {section.refuses[key]}; remove it"
        for part in location[:-1]:
            present = present[part]
        names = [name for name in section.model_fields if name not in present] or list(section.model_fields)
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
        return f"{path}: unknown parameter{f'; did you mean `{close[0]}`?' if close else ''}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not path:
        return message  # a check that spans sections names its own path
    close = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        allowed = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        nearest = difflib.get_close_matches(error["input"], allowed, n=1)
        close = f"; did you mean `{nearest[0]}`?" if nearest else ""
    if error["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}{close}"


def read_yaml(path: Path) -> Any:
    """Parse a YAML 1.2 file: `3e-4` is a number, `no` is a string.

    Raises:
        UserError: the file is missing or not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository's root or pass --params FILE") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def validate(raw: Any, origin: str = "params.yaml") -> Params:
    """Check a whole parameter tree.

    Raises:
        UserError: one line with every fault: dotted path, value, what is allowed, nearest valid name.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected a mapping of sections, got {type(raw).__name__}")
    try:
        # Through JSON, where a list is a tuple even in strict mode.
        return Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        faults = [_describe(e, raw) for e in error.errors() if _relevant(e)]
        raise UserError(f"{origin}: " + "; ".join(dict.fromkeys(faults))) from None


def load(path: Path) -> Params:
    """params.yaml as a frozen, validated object.

    Raises:
        UserError: see `read_yaml` and `validate`.
    """
    return validate(read_yaml(path), str(path))
