"""A full disk, files that may not grow, a place that cannot be written: one line, and nothing published is lost.

A limit on the size of files (RLIMIT_FSIZE) fails every write as a full disk does, without a file system of its own.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from evaluation import evaluate, train_classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract, reconstruct
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths
from tessera.artifacts.files import file_hash

pytestmark = pytest.mark.slow

STAGES = (prepare, train_vqvae, reconstruct, extract, train_prior, train_classifier, sample, evaluate)
PUBLISHED = (paths.PREPARED, paths.CODES, paths.VQVAE, paths.PRIOR, paths.CLASSIFIER, paths.SAMPLES)
SMALL = {
    "classifier.conv.channels": 4,
    "classifier.training.steps": 4,
    "classifier.training.warmup_steps": 1,
    "classifier.training.validate_every": 2,
    "sampling.images": 6,
    "sampling.grid_columns": 2,
}


@pytest.fixture(scope="module")
def whole_runs() -> list[Path]:
    """At most one: a copy of a whole run."""
    return []


@pytest.fixture
def done(
    in_tmp: Path, write_params: Callable[..., None], whole_runs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A finished run here, which would be made again; and the hash of each published file."""
    write_params(SMALL)
    if not whole_runs:
        (in_tmp / "data").mkdir()
        (in_tmp / "data" / "embedded.txt").touch()
        for stage in STAGES:
            assert stage.main([]) == 0, stage.__name__
        shutil.rmtree(".state")
        whole_runs.append(shutil.copytree(in_tmp, tmp_path_factory.mktemp("run") / "whole"))
    else:
        shutil.copytree(whole_runs[0], in_tmp, dirs_exist_ok=True)
    return published()


def published() -> dict[str, str]:
    return {str(file): file_hash(file) for folder in PUBLISHED for file in folder.rglob("*") if file.is_file()}


def unfinished() -> list[str]:
    """Temporary files and folders, of any name that this project gives them."""
    return [str(path) for path in Path.cwd().rglob(".*") if ".new-" in path.name or ".old-" in path.name]


def refused(stage: ModuleType, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line by which a stage ends."""
    capsys.readouterr()
    assert stage.main([]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1, errors
    return errors[0]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_files_that_may_not_grow_end_a_stage_in_one_line(done, in_tmp, capsys, stage):
    with largest_file(300):
        line = refused(stage, capsys)
    assert line.startswith(f"error: {in_tmp}") and "File too large; a limit of this shell (`ulimit -f`)" in line
    assert published() == done and unfinished() == []
    assert stage.main([]) == 0


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_full_disk_ends_a_stage_in_one_line(done, in_tmp, capsys, monkeypatch, stage):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)  # as where space is only reserved when a file is flushed
        line = refused(stage, capsys)
    assert line.startswith(f"error: {in_tmp}: No space left on device; free: ") and f" MB at {in_tmp}" in line
    assert published() == done and unfinished() == []


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_place_that_cannot_be_written_ends_a_stage_in_one_line(done, capsys, monkeypatch, stage):
    """Tests may run as root, whom no permission stops. So opening and making files below these folders is refused."""
    places = tuple(str(Path.cwd() / name) for name in ("data", "models", "results", ".state"))
    originals = {"open": os.open, "mkdir": os.mkdir, "io": io.open}

    def check(path: object, writes: bool) -> None:
        if writes and isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(places):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    def open_descriptor(path, flags, *arguments, **keywords):
        check(path, bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        return originals["open"](path, flags, *arguments, **keywords)

    def open_file(path, mode="r", *arguments, **keywords):
        check(path, mode[0] != "r" or "+" in mode)
        return originals["io"](path, mode, *arguments, **keywords)

    def mkdir(path, *arguments, **keywords):
        check(path, not os.path.isdir(path))
        return originals["mkdir"](path, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_descriptor)
        patched.setattr(io, "open", open_file)
        patched.setattr(builtins, "open", open_file)
        patched.setattr(os, "mkdir", mkdir)
        line = refused(stage, capsys)
    assert "Read-only file system; this stage must be able to write there" in line
    assert published() == done and unfinished() == []
