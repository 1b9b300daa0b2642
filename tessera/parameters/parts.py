"""Finds the options of a choice: the files of a package that define a class `Parameters`.

An option's file holds its module and its parameters' class, and is named as the option is named in params.yaml. To
check parameters, only the class `Parameters` is executed, with the definitions of the file that it refers to: a file's
modules need torch, and checking every option must neither wait for it nor import code that a run does not use.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tessera.errors import UserError
from tessera.project import is_module

PARAMETERS = "Parameters"  # the class that makes a file an option


def folder_of(package: str) -> Path:
    """The folder of a package of this project, which is not imported by the search."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    return Path(next(iter(spec.submodule_search_locations)))


def _names_defined(node: ast.stmt) -> list[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _needed(tree: ast.Module) -> list[ast.stmt]:
    """The statements of a file that `Parameters` refers to, directly or through others, in the file's order."""
    definitions = {name: node for node in tree.body for name in _names_defined(node)}
    queue, found = [PARAMETERS], set()
    while queue:
        node = definitions.get(queue.pop())
        if node is None or node in found:
            continue
        found.add(node)
        queue += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    return [*future, *(node for node in tree.body if node in found)]


@cache
def options(package: str) -> dict[str, Path]:
    """The options of a package and their files, by name in alphabetical order."""
    files = {file.stem: file for file in sorted(folder_of(package).glob("*.py")) if is_module(file)}
    return {name: file for name, file in files.items() if f"class {PARAMETERS}(".encode() in file.read_bytes()}


@cache
def parameters_of(package: str, name: str) -> type[Any]:
    """The class `Parameters` of an option, without importing the option.

    Raises:
        KeyError: the package has no such option.
        UserError: the file is not Python, or its class cannot be made.
    """
    file = options(package)[name]
    # A module of its own, so that pydantic finds the names in annotations; it must not pass for the option's.
    module = ModuleType(f"{package}.{name}:{PARAMETERS}")
    sys.modules[module.__name__] = module
    try:
        tree = ast.parse(file.read_bytes(), str(file))
        kept = ast.Module(_needed(tree), type_ignores=[])
        exec(compile(kept, str(file), "exec"), module.__dict__)
    except Exception as error:  # the file of a part that somebody is writing may do anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{file}: its class {PARAMETERS} cannot be read ({reason}); correct it, or move it away"
        ) from error
    return module.__dict__[PARAMETERS]


def class_of(package: str, name: str, base: type) -> type:
    """The one public subclass of `base` in an option's file.

    Raises:
        UserError: the package has no such option; or its file defines no such class, or several.
    """
    if name not in options(package):
        raise UserError(f"{package}: unknown option {name!r}; have {', '.join(options(package))}")
    module = import_module(f"{package}.{name}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    own = [kind for kind in classes if kind.__module__ == module.__name__]  # and not imported by the file
    found = [kind for kind in own if not kind.__name__.startswith("_")]
    if len(found) != 1:
        names = ", ".join(kind.__name__ for kind in found) or "none"
        raise UserError(
            f"{options(package)[name]}: expected one public subclass of {base.__name__}, found {names}; define one, "
            "and let the names of others begin with _"
        )
    return found[0]
