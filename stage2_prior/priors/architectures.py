"""The causal language models of the installed `transformers`, told without importing it, which takes seconds."""

from __future__ import annotations

import ast
import difflib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PROVEN = ("gpt2", "llama")  # always known, so that nothing is read for them
TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"  # in this file of `transformers`
FILE = Path("models", "auto", "modeling_auto.py")


@cache
def causal_models() -> tuple[str, ...]:
    """The names in `transformers`' table of causal language models, read from its source.

    Returns:
        Nothing if `transformers` is not installed, or if its source is not as expected. Training then refuses an
        unknown name.
    """
    spec = find_spec("transformers")
    file = Path(spec.origin).parent / FILE if spec and spec.origin else FILE
    if not file.is_file():
        return ()
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [TABLE]:
            pairs = (pair for pair in ast.walk(node.value) if isinstance(pair, ast.Tuple) and len(pair.elts) == 2)
            return tuple(pair.elts[0].value for pair in pairs if isinstance(pair.elts[0], ast.Constant))
    return ()


def unknown_architecture(name: str) -> str | None:
    """Why a name is no architecture, with the nearest ones. None: it is one, or that cannot be told."""
    known = () if name in PROVEN else causal_models()
    if not known or name in known:
        return None
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4) or PROVEN
    return f"{name!r} is not a causal language model of the installed transformers; nearest: {', '.join(close)}"
