"""Fixtures for all tests: parameters with changes, a folder of one's own, and who imports whom."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tessera.parameters import Params, read_yaml, validate

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("tessera", "stage0_images", "stage1_vqvae", "stage2_prior", "sampling", "evaluation")


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker() -> None:
    """Tests that run side by side have a thread each: more threads than cores wait for one another, for minutes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


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


@pytest.fixture
def write_params(in_tmp: Path, raw_params: dict[str, Any]) -> Callable[..., None]:
    """`write_params({"data.height": 8})`: params.yaml here, of a tiny and quick run, with dotted changes."""
    quick = {"steps": 10, "batch_size": 8, "warmup_steps": 2, "validate_every": 5}
    raw_params["stage1_vqvae"]["network"]["conv"] |= {
        "channels": 8,
        "stem_channels": 4,
        "residual_blocks": 1,
        "residual_channels": 4,
    }
    raw_params["stage1_vqvae"]["quantizer"]["vq"] |= {"codebook_size": 8, "codebook_dim": 4}
    raw_params["stage1_vqvae"]["training"] |= quick | {"codebook_images": 24}
    priors = raw_params["stage2_prior"]
    priors |= {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    priors["training"] |= quick
    priors["pixelsnail"] |= {"residuals": 1, "hidden": 1.0}
    raw_params["runtime"] |= {"threads": 1, "batch_size": 16, "log_every": 1}

    def write(changes: dict[str, Any] | None = None) -> None:
        for path, value in (changes or {}).items():
            *sections, key = path.split(".")
            node = raw_params
            for section in sections:
                node = node[section]
            node[key] = value
        (in_tmp / "params.yaml").write_text(json.dumps(raw_params), encoding="utf-8")

    return write


@pytest.fixture
def write_prepared(in_tmp: Path) -> Callable[..., None]:
    """`write_prepared((1, 8, 8), classes=3)`: data/prepared here, of smooth images whose brightness tells the class."""
    import numpy as np

    from tessera import paths
    from tessera.artifacts.arrays import ArrayWriter
    from tessera.artifacts.files import json_text
    from tessera.artifacts.publishing import publishing
    from tessera.images.prepared import Stats

    def write(
        shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 0, images: dict[str, int] | None = None
    ) -> None:
        random = np.random.default_rng(seed)
        names = tuple(f"class {i}" for i in range(classes)) or None
        stats = Stats(shape, names, images or {"train": 50, "validation": 13, "test": 7}, mean=0.0, variance=0.3)
        with publishing(paths.PREPARED, "prepared", {}) as folder:
            for split, count in stats.images.items():
                labels = np.arange(count) % max(1, classes)
                coarse = random.integers(0, 160, (count, shape[0], -(-shape[1] // 4), -(-shape[2] // 4)))
                pixels = coarse.repeat(4, 2).repeat(4, 3)[:, :, : shape[1], : shape[2]]
                pixels = pixels + labels[:, None, None, None] * 25 + random.integers(0, 10, pixels.shape)
                with ArrayWriter(folder / split / "images.npy", shape, np.uint8) as writer:
                    writer.append(pixels)
                if classes:
                    with ArrayWriter(folder / split / "labels.npy", (), np.int64) as writer:
                        writer.append(labels)
            (folder / "stats.json").write_text(json_text(stats.to_json()), encoding="utf-8")

    return write
