"""Fixtures for all tests: parameters with changes, a folder of one's own, and who imports whom."""

from __future__ import annotations

import ast
import gc
import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tessera import documents, project
from tessera.parameters import Params, read_yaml, validate

REPOSITORY = Path(__file__).parent.parent
LONG = (  # test files that take minutes, the longest first
    "test_dvc_experiments",
    "test_dvc_reruns",
    "test_interrupted_runs",
    "test_two_processes",
    "test_kills",
    "test_many_processes",
    "test_presets",
    "test_tutorial",
    "test_killed_pipelines",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker() -> None:
    """Tests that run side by side have a thread each: more threads than cores wait for one another, for minutes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def seeds_are_of_devices_that_there_are() -> Iterator[None]:
    """For each device that is missing, torch would keep a seed together with a stack trace, which takes a while."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


_read: dict[str, bytes] = {}  # YAML texts, and the pickled values that they stand for


@pytest.fixture(scope="session", autouse=True)
def a_text_is_read_once() -> Iterator[Callable[[str], Any]]:
    """YAML that was read before is not read again: a params.yaml takes 40 ms, and hundreds of tests read it.

    Yields the reader that it replaces.
    """
    read = documents._load_yaml

    def read_once(text: str) -> Any:
        if text not in _read:
            _read[text] = pickle.dumps(read(text))
        return pickle.loads(_read[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_load_yaml", read_once)
        yield read


@pytest.fixture(scope="session", autouse=True)
def files_are_not_flushed() -> Iterator[None]:
    """No power fails here, and a disk that is busy with an installation may hold up each flush for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def interrupts_as_in_a_terminal() -> Iterator[None]:
    """Undo what a shell does to its background jobs, which ignore SIGINT, and `nohup`, which ignores SIGHUP."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    if before[signal.SIGINT] == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[signal.SIGHUP] == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def nothing_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine anything may take so long that a line says so, which is no matter of the tests' own."""
    monkeypatch.setattr("tessera.console.LONG", 1e6)
    monkeypatch.setattr("tessera.console.PACE", 1e6)


def pytest_configure() -> None:
    """Tests and libraries are loaded without garbage collection, which would take a quarter of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was loaded stays to the end, so no collection looks at it again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """At the end everything is freed, or libraries would report leaks."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take minutes first, so that no process of `make test-slow` works alone at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@cache
def _own_params() -> bytes:
    return pickle.dumps(read_yaml(REPOSITORY / "params.yaml"))


@pytest.fixture
def raw_params() -> dict[str, Any]:
    """The repository's params.yaml as plain values, fresh for each test. To read the file takes 40 ms."""
    return pickle.loads(_own_params())


def change(raw_params: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set values by dotted names, `{"sampling.top_k": 5}`. Sections that are missing are made."""
    for path, value in changes.items():
        *sections, key = path.split(".")
        node = raw_params
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value


@pytest.fixture
def params(raw_params: dict[str, Any]) -> Callable[[dict[str, Any]], Params]:
    """`params({"sampling.top_k": 5})`: the repository's parameters with dotted changes, validated."""

    def make(changes: dict[str, Any] | None = None) -> Params:
        change(raw_params, changes or {})
        return validate(raw_params)

    return make


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one: entry points read and write relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def on_the_cpu(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings run in an empty folder, on the CPU, and not as stages of DVC."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@dataclass(frozen=True)
class Imports:
    """What a product file imports: the repository's own files as paths, and outer packages by their first name."""

    own: frozenset[str]
    outer: frozenset[str]


def _imports(file: Path) -> Imports:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{file}: imports are absolute here"
    own = frozenset(other.relative_to(REPOSITORY).as_posix() for other in project.imports(file))
    names = {module.split(".")[0] for module in project.modules_imported(file)}
    return Imports(own, frozenset(names - set(project.PACKAGES)))


@pytest.fixture(scope="session")
def imports() -> dict[str, Imports]:
    """The imports of every product file, by its path relative to the repository."""
    return {file.relative_to(REPOSITORY).as_posix(): _imports(file) for file in project.files()}


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
    raw_params["stage1_vqvae"]["quantizer"] |= {"codebook_size": 8, "codebook_dim": 4}
    raw_params["stage1_vqvae"]["training"] |= quick | {"codebook_images": 24}
    raw_params["refine_decoder"]["training"] |= quick
    raw_params["stage2_prior"] |= {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    raw_params["stage2_prior"]["training"] |= quick
    raw_params["stage2_prior"]["pixelsnail"] |= {"residuals": 1}
    raw_params["runtime"] |= {"processes": 1, "threads": 1, "batch_size": 16, "log_every": 1}

    def write(changes: dict[str, Any] | None = None) -> None:
        change(raw_params, changes or {})
        text = json.dumps(raw_params)
        _read.setdefault(text, pickle.dumps(raw_params))
        (in_tmp / "params.yaml").write_text(text, encoding="utf-8")

    return write


@cache
def _tiny_prior(name: str) -> dict[str, Any]:
    raw = pickle.loads(_own_params())
    raw["stage2_prior"] |= {"name": name, "layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    return validate(raw).stage2_prior.chosen.arguments()


@pytest.fixture(scope="session")
def prior_arguments() -> Callable[..., dict[str, Any]]:
    """`prior_arguments("masked", bound_draws=4)`: the arguments of a tiny prior.

    They are the values of params.yaml with small shared sizes, then the changes. So an option's file and its section in
    params.yaml are all that a test over every prior needs.
    """

    def make(name: str, **changes: Any) -> dict[str, Any]:
        return _tiny_prior(name) | changes

    return make


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
        stats = Stats(shape, names, images or {"train": 50, "validation": 13, "test": 7}, 0.0, 0.3)
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
