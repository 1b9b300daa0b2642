"""Which keys and values a configuration of `transformers` may have, in params.yaml and in a published prior.

`transformers` obeys what a configuration says. Some keys make it load code from the Hub or from a path, such as
`attn_implementation: owner/kernel`. So only names and numbers are let through, and none of these keys. Imports neither
torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keys by which the library loads code or weights from elsewhere, or chooses how attention is computed. They stand in
# published configurations without a value.
REACHING = re.compile(
    "implementation|auto_map|quantiz|name_or_path|remote|commit_hash|kernel_config|use_kernel|revision"
)
NAME = re.compile("[A-Za-z0-9_-]{0,64}")  # no path and no Hub id
DEPTH = 8
# How attention is computed: what `transformers` itself chooses if it is asked for nothing. Neither needs the Hub.
ATTENTION = ("sdpa", "eager")


def refused(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first key that a configuration may not have, by its dotted path, and why. None: all are allowed."""
    return _refused_inside(values, (), 0)


def _refused_inside(
    values: Mapping[str, Any] | list[Any] | tuple[Any, ...], path: tuple[str, ...], depth: int
) -> tuple[str, str] | None:
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        place = (*path, str(key))
        if fault := _fault(str(key), value):
            return ".".join(place), fault
        if isinstance(value, Mapping | list | tuple):
            if depth == DEPTH:
                return ".".join(place), "nested too deeply"
            if found := _refused_inside(value, place, depth + 1):
                return found
    return None


def _fault(key: str, value: Any) -> str | None:
    """Why a key, or its value if that is no collection, is not allowed. None: it is."""
    if not NAME.fullmatch(key):
        return "not allowed: a key consists of letters, digits, _ and -"
    if REACHING.search(key) and value not in (None, "", [], {}):
        return "not allowed: it could make transformers load code from elsewhere"
    if isinstance(value, str) and not NAME.fullmatch(value):
        return f"{value[:100]!r} is not allowed: a text here is the name of an option, no path or Hub id"
    known = value is None or isinstance(value, bool | int | float | str | Mapping | list | tuple)
    return None if known else f"a {type(value).__name__} is not allowed"
