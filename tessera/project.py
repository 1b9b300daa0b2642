"""This project's own code: its files, what each does by its syntax, which files it imports, which are loaded."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tessera.errors import UserError

ROOT = Path(__file__).parent.parent
PACKAGES = ("tessera", "stage0_images", "stage1_vqvae", "stage2_prior", "sampling", "evaluation")


def files() -> list[Path]:
    """Every Python file of the project, sorted. An editor's lock file or a hidden file beside them is none."""
    found = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return sorted(file for file in found if is_module(file))


def is_module(file: Path) -> bool:
    """Whether a path that ends in .py is a file that can be imported."""
    return file.stem.isidentifier() and file.is_file()


def loaded() -> list[Path]:
    """The project's Python files that this process has imported, sorted."""
    rooms = tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES)
    own = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in (*PACKAGES, "__main__")]
    found = {str(getattr(module, "__file__", None)) for module in own}
    return sorted(Path(file) for file in found if file.startswith(rooms))


def _is_type_checking(node: ast.AST) -> bool:
    conditions = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.If) and ast.unparse(node.test) in conditions and not node.orelse


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _written(node: object) -> Iterator[str]:
    """A syntax tree as text that no comment, docstring, layout or Python version changes."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                value = [part for part in value if not _is_docstring(part) and not _is_type_checking(part)]
            if value is not None and value != [] and name != "kind":
                yield f" {name}="
                yield from _written(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for part in node:
            yield from _written(part)
            yield ","
        yield "]"
    else:
        yield repr(node)


@cache
def syntax(text: str | bytes) -> str:
    """SHA-256 of what a file's text does: comments, docstrings, layout and imports for type checkers do not count."""
    digest = hashlib.sha256()
    for part in _written(ast.parse(text)):
        digest.update(part.encode())
    return digest.hexdigest()


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, but not what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not _is_type_checking(child):
            yield child
            yield from _runtime_nodes(child)


def modules_imported(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, inside functions too; of `from a import b` both `a` and `a.b`.

    Raises:
        UserError: a relative import, which would have to be resolved to be followed.
    """
    for node in _runtime_nodes(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise UserError(f"{file}:{node.lineno}: a relative import; import by the full name, from the package's")
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(module: str) -> set[Path]:
    """The project's files that run when a module is imported: its own, and the `__init__` of each package around it."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return set()
    base = ROOT.joinpath(*parts)
    found = {base.with_suffix(".py"), *(ROOT.joinpath(*parts[: i + 1]) / "__init__.py" for i in range(len(parts)))}
    return {file for file in found if file.is_file()}


@cache
def imports(file: Path) -> frozenset[Path]:
    """The project's files that a file imports directly."""
    return frozenset(own for module in modules_imported(file) for own in files_of(module)) - {file}


def closure(start: set[Path]) -> set[Path]:
    """The given files and everything that they import, directly or through others."""
    found, queue = set(start), list(start)
    while queue:
        new = imports(queue.pop()) - found
        found |= new
        queue += new
    return found
