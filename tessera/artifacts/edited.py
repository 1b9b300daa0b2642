"""Says what in params.yaml differs from what a published folder was made with.

Under DVC the two always agree. A stage that is started by hand after an edit reads what is there. Its result is right
for what it read, and other than params.yaml says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tessera.artifacts.manifests import REMEDY
from tessera.console import say


def tell_if_edited(folder: Path, kind: str, made: dict[str, Any], now: dict[str, Any]) -> None:
    """Print a line if a published folder was made with other parameters than these.

    Args:
        kind: what the folder holds, a key of `REMEDY`.
        made: parameters that it was made with, as JSON values, from the top of params.yaml.
        now: the same of params.yaml as it is now. Keys of one side alone do not count.
    """
    place = first_difference(made, now)
    if place is not None:
        path, old, new = place
        say(
            f"warning: {folder} was made with {path} {old!r}, params.yaml says {new!r}; it is used as it is; "
            f"`{REMEDY[kind]}` makes it anew, and then what depends on it"
        )


def first_difference(made: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The dotted path of the first value that differs, and both values; of a choice, its name is compared first."""
    if isinstance(made, list) and isinstance(now, list) and len(made) == len(now):
        made, now = dict(enumerate(made)), dict(enumerate(now))
    if isinstance(made, dict) and isinstance(now, dict):
        names = sorted(set(made) & set(now), key=lambda name: (name != "name", name))
        inner = (first_difference(made[name], now[name], f"{path}.{name}".strip(".")) for name in names)
        return next((found for found in inner if found is not None), None)
    return None if made == now else (path, made, now)
