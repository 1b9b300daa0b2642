"""Reads JSON and YAML files that may be damaged, huge or hostile.

Every failure is one `UserError` line that names the file and says what to do. Time and memory are bounded: a file has a
largest size, and its values a largest nesting depth. A YAML alias counts as all the values that it stands for, so that
a few lines cannot become billions of values.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tessera.errors import UserError

JSON_BYTES = 64 * 2**20  # the largest JSON file here is a manifest: about 70 bytes for each MiB of its arrays
YAML_BYTES = 2**17  # the YAML reader takes four seconds a MiB or more
DEPTH = 64  # params.yaml nests nine levels deep
YAML_VALUES = 50_000

REPAIR = "correct it, or restore it from a copy"


class Unreadable(ValueError):
    """The reason why a text is refused. The reader that was called adds the file's name and the advice."""


def read_bytes(path: Path, limit: int, advice: str = REPAIR) -> bytes:
    """The contents of a regular file.

    Args:
        limit: the largest size accepted, in bytes.
        advice: what the user is told to do about a failure.

    Raises:
        UserError: the file is missing, unreadable or too large, or it is a folder, a pipe or a device.
    """
    try:
        # A pipe that nobody writes to would block for ever without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: not a regular file; {advice}")
            # Python allocates the size that is asked for, so no more is asked for than the file has.
            data = file.read(min(status.st_size, limit) + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    if len(data) > limit:
        raise UserError(f"{path}: larger than {limit} bytes, the most that is read; {advice}")
    return data


def read_json(path: Path, advice: str = REPAIR, finite: bool = True) -> Any:
    """The value of a JSON file.

    Args:
        advice: what the user is told to do about a failure.
        finite: whether NaN and infinite numbers are refused.

    Raises:
        UserError: see `read_bytes`; or the file is not UTF-8, is not JSON, nests too deep, has a key twice in one
            object, or has a number that is not finite.
    """
    return parse_json(read_bytes(path, JSON_BYTES, advice), path, advice, finite)


def parse_json(data: bytes, name: object, advice: str = REPAIR, finite: bool = True) -> Any:
    """The value of JSON bytes; `name` stands for them in messages. See `read_json`."""
    return _parsed(data, name, "JSON", lambda text: json.loads(text, object_pairs_hook=_unique), advice, finite)


def read_yaml(path: Path, advice: str = REPAIR) -> Any:
    """The value of a YAML 1.2 file: `3e-4` is a number and `no` is a string.

    Raises:
        UserError: see `read_bytes`; or the file is not UTF-8, is not YAML, nests too deep, has a key twice in one
            mapping, has aliases that expand to too many values, or has a number that is not finite.
    """
    return parse_yaml(read_bytes(path, YAML_BYTES, advice), path, advice)


def parse_yaml(data: bytes | str, name: object, advice: str = REPAIR) -> Any:
    """The value of YAML 1.2 text; `name` stands for it in messages. See `read_yaml`."""
    data = data.encode(errors="replace") if isinstance(data, str) else data
    if len(data) > YAML_BYTES:
        raise UserError(f"{name}: larger than {YAML_BYTES} bytes, the most that is read; {advice}")
    return _parsed(data, name, "YAML", _load_yaml, advice, finite=True)


def _parsed(data: bytes, name: object, kind: str, load: Callable, advice: str, finite: bool) -> Any:
    try:
        value = load(data.decode("utf-8-sig"))
        _check(value, finite)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8 text (byte {error.start} is {data[error.start]:#04x}); save it as UTF-8, or {advice}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{name}: not valid {kind}: nested too deeply; {advice}") from error
    except ValueError as error:  # JSON errors, numbers of too many digits, `Unreadable`
        raise UserError(f"{name}: not valid {kind}: {' '.join(str(error).split())}; {advice}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Unreadable(f"the key {twice!r} occurs twice in one object")
    return found


def _check(value: Any, finite: bool) -> None:
    """Refuse values that nest too deep or cannot be written, and (if `finite`) NaN and infinities.

    Raises:
        Unreadable: with the reason.
    """
    level, depth = [value], 0
    while level:
        keys = [key for one in level if isinstance(one, dict) for key in one]
        if odd := [key for key in keys if not isinstance(key, str | int | float)]:
            raise Unreadable(f"the key {odd[0]!r} is no text; put it between quotes")
        if halves := [text for text in (*keys, *level) if isinstance(text, str) and not _is_text(text)]:
            raise Unreadable(f"{halves[0][:40]!r} has half a surrogate pair, which no file can hold")
        if finite and any(_endless(one) for one in level):
            place = _place(value)
            raise Unreadable(f"{place}{': ' * bool(place)}NaN or an infinite number; only finite numbers are allowed")
        if depth > DEPTH:
            raise Unreadable(f"nested more than {DEPTH} levels deep")
        children: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                children += one.values()
            elif isinstance(one, list | tuple):
                children += one
        level, depth = children, depth + 1


def _endless(value: Any) -> bool:
    """Whether a value is NaN or an infinite number."""
    return isinstance(value, float) and not math.isfinite(value)


def _is_text(text: str) -> bool:
    """Whether every character can be written. An escape in JSON and YAML may stand for half a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _place(value: Any) -> str:
    """The dotted path of the first NaN or infinite number in a value that nests no deeper than `DEPTH`."""
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    for key, child in children:
        if _endless(child):
            return str(key)
        if inside := _place(child):
            return f"{key}.{inside}"
    return ""


def _load_yaml(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
    from ruamel.yaml.parser import Parser

    class BoundedParser(Parser):
        """Counts values while they are parsed, before anything is built from them."""

        def __init__(self, loader: YAML) -> None:
            super().__init__(loader=loader)
            self.open: list[tuple[str | None, int]] = []  # anchor and number of values of each unfinished collection
            self.anchored: dict[str, int] = {}  # number of values that an alias of this anchor stands for

        def get_event(self) -> Any:
            event = super().get_event()
            if isinstance(event, CollectionStartEvent):
                self.open.append((event.anchor, 1))
                if len(self.open) > DEPTH:
                    raise Unreadable(f"nested more than {DEPTH} levels deep")
            elif isinstance(event, CollectionEndEvent):
                self.add(*self.open.pop())
            elif isinstance(event, ScalarEvent):
                self.add(event.anchor, 1)
            elif isinstance(event, AliasEvent):
                if any(anchor == event.anchor for anchor, _ in self.open):
                    raise Unreadable(f"the alias *{event.anchor} stands inside the value that it refers to")
                self.add(None, self.anchored.get(event.anchor, 1))
            return event

        def add(self, anchor: str | None, values: int) -> None:
            if anchor is not None:
                self.anchored[anchor] = values
            if self.open:
                around, before = self.open[-1]
                self.open[-1] = (around, before + values)
            if values > YAML_VALUES or (self.open and self.open[-1][1] > YAML_VALUES):
                raise Unreadable(f"more than {YAML_VALUES} values, with aliases expanded")

    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = BoundedParser
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Unreadable(f"{error.problem or error.context}{place}") from error
    except (YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # An impossible value of a tagged type (`!!bool x`) ends in any of these inside the library.
        raise Unreadable(f"{type(error).__name__}: {error}") from error
