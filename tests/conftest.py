"""Fixtures for all tests: parameters with changes, a folder of one's own, and who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.params import Params, read_yaml, validate

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("common", "stage1_vqvae", "stage2_prior", "sampling")


@pytest.fixture
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture
def raw_params() -> dict[str, Any]:
    """The repository's params.yaml as plain values, fresh for each test."""
    return read_yaml(REPOSITORY / "params.yaml")


@pytest.fixture
def params(raw_params: dict[str, Any]) -> Callable[[dict[str, Any]], Params]:
    """`params({"sampling.top_k": 5})`: the repository's parameters with dotted changes, validated."""

    def make(changes: dict[str, Any] | None = None) -> Params:
        for path, value in (changes or {}).items():
            *sections, key = path.split(".")
            node = raw_params
            for section in sections:
                node = node[section]
            node[key] = value
        return validate(raw_params)

    return make


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one: entry points read and write relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Imports:
    """What a product file imports: the repository's own files as paths, and outer packages by their first name."""

    own: frozenset[str]
    outer: frozenset[str]


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, but not what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _runtime_nodes(child)


def _own_files(module: str) -> set[str]:
    """The files that run when `module` is imported: itself and the __init__.py of every package it lies in."""
    parts = module.split(".")
    base = Path(*parts)
    files = {base.with_suffix(".py"), *(Path(*parts[: i + 1]) / "__init__.py" for i in range(len(parts)))}
    return {file.as_posix() for file in files if (REPOSITORY / file).is_file()}


def _imports(file: str) -> Imports:
    own, outer = set(_own_files(file.removesuffix(".py").replace("/", "."))), set()
    for node in _runtime_nodes(ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                own |= _own_files(name)
            else:
                outer.add(name.split(".")[0])
    return Imports(frozenset(own - {file}), frozenset(outer))


@pytest.fixture(scope="session")
def imports() -> dict[str, Imports]:
    """The imports of every product file, by its path relative to the repository."""
    files = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    return {name: _imports(name) for name in (path.relative_to(REPOSITORY).as_posix() for path in files)}
