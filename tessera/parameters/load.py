"""Read params.yaml (YAML 1.2) into `Params`, and say plainly what is wrong with it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tessera import documents
from tessera.errors import UserError
from tessera.parameters.inherit import Filled, fill, section_in
from tessera.parameters.root import Params, schema
from tessera.parameters.sections import Choice, Section

MOST_FAULTS = 12  # that one message tells
ONE = ("int", "float", "constrained-int", "constrained-float")  # pydantic's names for what is no list


def _section_at(location: tuple) -> type[Section]:
    """The model of the section in which a value lies."""
    model: type[Section] = schema()
    for key in location[:-1]:
        if isinstance(key, int):  # a place in a list of sections, which the field's type has led into
            continue
        model = section_in(model.model_fields[key].annotation)
    return model


def _location(error: dict[str, Any]) -> tuple:
    """Where a fault is, without pydantic's names for the alternatives of a type."""
    return tuple(part for part in error["loc"] if isinstance(part, int) or ("[" not in part and part not in ONE))


def _relevant(error: dict[str, Any]) -> bool:
    """Whether a fault is to be told.

    Where a value may be one or a list, pydantic reports it as both: only the alternative that fits it counts. A missing
    shared value is missing once.
    """
    if error["type"] == "missing" and _misses_shared(_location(error)):
        return False
    if error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]:
        return False  # the list is long enough; an item of it is wrong, which is told by itself
    if isinstance(error["input"], list | tuple):
        return error["loc"][-1] not in ONE
    return error["type"] != "tuple_type" or "[" not in str(error["loc"][-1])


def _misses_shared(location: tuple) -> bool:
    """Whether a missing value of an option is one that the choice around it must give."""
    model: type[Section] | None = schema()
    for depth, key in enumerate(location[:-1]):
        if model is None:  # within a list of numbers
            return False
        if issubclass(model, Choice) and model.shared_names() & set(location[depth + 1 :]):
            return True
        if not isinstance(key, int):
            model = section_in(model.model_fields[key].annotation)
    return False


def _unknown(location: tuple, path: str, raw: Any) -> str:
    present, section, key = raw, _section_at(location), str(location[-1])
    if key in section.refuses:
        return f"{path}: does not apply, since {section.refuses[key]}; remove it"
    for part in location[:-1]:
        present = present[part]
    names = [name for name in section.model_fields if name not in present] or list(section.model_fields)
    if issubclass(section, Choice) and section.nested:  # it also takes the shared values that its option has
        chosen = section_in(section.model_fields.get(present.get("name"), section.model_fields["name"]).annotation)
        names = ["name", *(chosen.model_fields if chosen else section.option_names())]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f"{path}: unknown parameter{f'; did you mean `{close[0]}`?' if close else ''}"


def _where(location: tuple, filled: Filled) -> tuple:
    """Where in params.yaml a value stands that an option may have inherited."""
    for depth in range(len(location), 0, -1):
        if location[:depth] in filled.source:
            return (*filled.source[location[:depth]], *location[depth:])
    return location


def _describe(error: dict[str, Any], filled: Filled) -> str:
    location = _location(error)
    path = ".".join(str(part) for part in _where(location, filled))
    if error["type"] == "missing":
        option = isinstance(_section_at(location), type) and issubclass(_section_at(location), Choice)
        named = option and location[-1] in _section_at(location).option_names()
        return f"{path}: missing" + ("; add the section, `{}` if it has no values of its own" if named else "")
    if error["type"] == "extra_forbidden":
        return _unknown(location, path, filled.tree)
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
    """The values of a parameter file, not yet validated. `3e-4` is a number and `no` is a string (YAML 1.2).

    Raises:
        UserError: the file is missing, or `tessera.documents.read_yaml` refuses it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run from the repository's root or pass --params FILE")
    return documents.read_yaml(path)


def validate(raw: Any, origin: str = "params.yaml") -> Params:
    """Check a whole parameter tree. An option's section gets the shared values that it takes (see `fill`). Any other
    value that is missing is a fault.

    Args:
        origin: where the tree is from, for the message.

    Raises:
        UserError: a single line that lists all faults. Each has its dotted path, the value, what is allowed and, for a
            misspelt name, the nearest valid one.
    """
    if raw is None:
        raise UserError(f"{origin}: empty; write it anew with `python -m tessera preset digits`, or restore it by Git")
    if not isinstance(raw, dict):
        raise UserError(f"{origin}: expected a mapping of sections, got {type(raw).__name__}")
    filled = fill(schema(), raw)
    try:
        # Through JSON, where a list is a tuple even in strict mode.
        return schema().model_validate_json(json.dumps(filled.tree, default=str))
    except ValidationError as error:
        faults = [_describe(e, filled) for e in error.errors() if _relevant(e)]
        different = list(dict.fromkeys(faults))
        more = f"; and {len(different) - MOST_FAULTS} more" if len(different) > MOST_FAULTS else ""
        text = f"{origin}: " + "; ".join(different[:MOST_FAULTS]) + more
        raise UserError("".join(c if c.isprintable() else repr(c)[1:-1] for c in text)) from None


def load(path: Path) -> Params:
    """params.yaml as a frozen, validated object.

    Raises:
        UserError: see `read_yaml` and `validate`.
    """
    return validate(read_yaml(path), str(path))
