"""Fills each option's section with the values that options share, before params.yaml is checked.

`stage2_prior.width` stands once beside the options. The section of an option that has a `width` takes it from there,
unless it gives its own. A choice inside an option takes values from the choice around it by the same rule. A section
may also take what it does not give from another section (`Section.takes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from tessera.parameters.sections import Choice, Section

Path = tuple[str | int, ...]
Source = tuple[dict[str, Any], Path]  # values of a section, and where in params.yaml they stand


@dataclass
class Filled:
    """A parameter tree in which every option's section is complete.

    Attributes:
        tree: the values.
        source: where an inherited value, or a section of nothing else, stands in params.yaml, by its place in `tree`.
    """

    tree: dict[str, Any]
    source: dict[Path, Path] = field(default_factory=dict)


def section_in(annotation: Any) -> type[Section] | None:
    """The section in a field's type, if there is one."""
    parts = [annotation, *get_args(annotation)]
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def fill(schema: type[Section], raw: dict[str, Any]) -> Filled:
    """A copy of params.yaml in which every option's section also has the shared values that it takes.

    Values that nobody gives stay missing, and a value that should be a mapping and is not stays as it is. Validation
    reports both later.

    Args:
        schema: the section that the whole file is read into.
        raw: the file's values; they are not changed.
    """
    filled = Filled({})
    filled.tree = _section(schema, _with_taken(schema, raw, filled), (), filled, [])
    return filled


def _with_taken(schema: type[Section], raw: dict[str, Any], filled: Filled) -> dict[str, Any]:
    """The file's values, where each section that takes values from another has them (`Section.takes`)."""
    found = dict(raw)
    for name, info in schema.model_fields.items():
        part = section_in(info.annotation)
        for key, (other, field_there) in (part.takes if part else {}).items():
            own, there = found.get(name), raw.get(other)
            there = there.get(field_there) if isinstance(there, dict) else None
            inner = section_in(part.model_fields[key].annotation)
            if isinstance(own, dict) and isinstance(there, dict) and inner:
                places = (name, key), (other, field_there)
                found[name] = {**own, key: _completed(inner, own.get(key, {}), there, places, filled)}
    return found


def _completed(part: type[Section], own: Any, other: dict[str, Any], places: tuple[Path, Path], filled: Filled) -> Any:
    """A section's own values, and those that it lacks from another section of its kind, key by key at every depth.

    Args:
        places: where the two sections stand in params.yaml.
    """
    if not isinstance(own, dict):
        return own
    result = dict(own)
    for key, info in part.model_fields.items():
        inner, below = section_in(info.annotation), ((*places[0], key), (*places[1], key))
        if key in other and key not in own:
            result[key] = other[key]
            filled.source[below[0]] = below[1]
        elif key in own and inner and isinstance(other.get(key), dict):
            result[key] = _completed(inner, own[key], other[key], below, filled)
    return result


def _section(schema: type[Section], raw: Any, path: Path, filled: Filled, around: list[Source]) -> Any:
    """One section with the choices inside it filled. `around`: the choices around it, the nearest first."""
    if not isinstance(raw, dict):
        return raw
    if issubclass(schema, Choice):
        return _choice(schema, raw, path, filled, around)
    found = dict(raw)
    for name, info in schema.model_fields.items():
        part, value, place = section_in(info.annotation), raw.get(name), (*path, name)
        if part and isinstance(value, list):
            found[name] = [_section(part, v, (*place, i), filled, around) for i, v in enumerate(value)]
        elif part and isinstance(value, dict):
            found[name] = _section(part, value, place, filled, around)
    return found


def _choice(schema: type[Choice], raw: dict[str, Any], path: Path, filled: Filled, around: list[Source]) -> Any:
    """A choice whose options are complete. A nested one keeps no shared values that its option has taken."""
    sources = [(raw, path), *around] if schema.nested else [(raw, path)]
    found = dict(raw)
    for name in schema.option_names():
        own = raw.get(name)
        if own is None and (schema.nested or schema.optional) and name == raw.get("name"):
            own = {}  # its section may be left out, or be a key without anything
        if not isinstance(own, dict):
            continue
        part, place = section_in(schema.model_fields[name].annotation), (*path, name)
        layers: list[Source] = []  # the strongest first: what stands nearer, and in one choice the option's own values
        for values, where in sources:
            layers += [(values[name], (*where, name))] if isinstance(values.get(name), dict) else []
            layers.append((values, where))
        found[name] = _section(part, _merged(own, part, layers, place, filled), place, filled, sources)
    if schema.nested and raw.get("name") in schema.option_names():
        taken = _taken(schema, raw["name"])
        found = {key: value for key, value in found.items() if key not in taken}
    return found


def _taken(schema: type[Choice], name: str) -> set[str]:
    """The shared values that the chosen option takes. One with a choice inside takes what any option there may take."""
    parts = {option: section_in(schema.model_fields[option].annotation) for option in schema.option_names()}
    inner = [section_in(info.annotation) for info in parts[name].model_fields.values()]
    if any(part and issubclass(part, Choice) for part in inner):
        return {key for part in parts.values() for key in part.model_fields}
    return set(parts[name].model_fields)


def _merged(own: dict[str, Any], part: type[Section], layers: list[Source], path: Path, filled: Filled) -> dict:
    """A section's own values, and of its other fields the strongest layer's; sections are merged key by key."""
    result = dict(own)
    for key, info in part.model_fields.items():
        holders = [(values[key], (*where, key)) for values, where in layers if key in values]
        if not holders:
            continue
        value, where = holders[0]
        inner = section_in(info.annotation)
        if inner and not issubclass(inner, Choice) and isinstance(value, dict):
            below = [(values, place) for values, place in holders if isinstance(values, dict)]
            result[key] = _merged(own.get(key, {}), inner, below, (*path, key), filled)
        else:
            result[key] = value
        if where != (*path, key):
            filled.source[(*path, key)] = where
    return result
