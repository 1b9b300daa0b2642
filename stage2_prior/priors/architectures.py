"""The causal language models of the installed `transformers` and the keys of their configurations.

Both are read from its source. Importing it takes seconds.
"""

from __future__ import annotations

import ast
import difflib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    """The reason why `name` is no architecture, with similar names; None if it is one, or if this cannot be decided."""
    known = () if name in PROVEN else causal_models()
    if not known or name in known:
        return None
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4) or PROVEN
    return f"{name!r} is not a causal language model of the installed transformers; nearest: {', '.join(close)}"


@cache
def configuration_keys(name: str) -> frozenset[str]:
    """The keys that the configuration of an architecture knows, read from `transformers`' source.

    Returns:
        The keys; nothing if the source does not show them. Training then refuses an unknown key.
    """
    spec = find_spec("transformers")
    root, folder = Path(spec.origin).parent if spec and spec.origin else Path(), name.replace("-", "_")
    file = root / "models" / folder / f"configuration_{folder}.py"
    common = _classes(root / "configuration_utils.py").get("PreTrainedConfig")
    own = [one for one in _classes(file).values() if _value(one, "model_type") == name]
    if common is None or len(own) != 1 or [ast.unparse(base) for base in own[0].bases] != [common.name]:
        return frozenset()
    aliases = _value(own[0], "attribute_map") or {}
    return frozenset(key for one in (common, own[0]) for key in _fields(one)) | frozenset(aliases)


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    """The classes that a Python file defines."""
    body = ast.parse(file.read_bytes()).body if file.is_file() else []
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _fields(kind: ast.ClassDef) -> set[str]:
    """The fields of a dataclass, the arguments of its constructor, and the attributes that its methods set."""
    fields = [node for node in kind.body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node)]
    found = {node.target.id for node in fields if isinstance(node.target, ast.Name)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            found.update(names if node.name == "__init__" else [node.name] if node.decorator_list else [])
    return {name for name in found if not name.startswith("_")}


def _value(kind: ast.ClassDef, name: str) -> Any:
    """The constant that a class gives a name, or None."""
    for node in kind.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target) == name for target in targets):
                try:
                    return ast.literal_eval(node.value)
                except ValueError:
                    return None
    return None


def unknown_key(architecture: str, key: str) -> str | None:
    """The reason why an architecture has no such key, with the most similar one; None if it has, or may have."""
    known = configuration_keys(architecture)
    if not known or key in known:
        return None
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
    return f"unknown to {architecture}; did you mean `{close}`?"
