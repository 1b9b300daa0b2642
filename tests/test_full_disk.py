"""A full disk, files that may not grow, a place that cannot be written: one line, and nothing published is lost.

A limit on the size of files (RLIMIT_FSIZE) fails every write as a full disk does, without a file system of its own. A
flush (`os.fsync`) that fails stands for a disk on which space is only reserved when a file is flushed: from any flush
that a healthy run makes on. A real file system of 20 MB is mounted where the system lets a test do so.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from whole_runs import by_hand

from evaluation import evaluate, report, train_classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract, reconstruct, refine
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths
from tessera.artifacts.files import file_hash

STAGES = (prepare, train_vqvae, refine, reconstruct, extract, train_prior, train_classifier, sample, evaluate, report)
MODELS = (paths.VQVAE, paths.DECODERS, paths.PRIOR, paths.CLASSIFIER)
PUBLISHED = (paths.PREPARED, paths.CODES, *MODELS, paths.SAMPLES)
SMALL = {
    "runtime.save_every": 4,
    "extract_codes.shift": 0,
    "refine_decoder.name": "objective",
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": {"weight": 0.1, "adaptive": False}},
    "refine_decoder.training": {"steps": 4, "batch_size": 8, "warmup_steps": 1, "validate_every": 2},
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


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_files_that_may_not_grow_end_a_stage_in_one_line(done, in_tmp, capsys, stage):
    with largest_file(300):
        line = refused(stage, capsys)
    assert line.startswith(f"error: {in_tmp}") and "File too large; a limit of this shell (`ulimit -f`)" in line
    assert published() == done and unfinished() == []
    assert stage.main([]) == 0


@contextmanager
def flushing(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, str], bool] = lambda number, path: False
) -> Iterator[list[str]]:
    """Fail flushes from one on. Yields the paths that were flushed.

    Args:
        fails: whether the disk is full from this flush on: its number, from 1 on, and its path.
    """
    flushed, whole, full = [], os.fsync, False

    def flush(descriptor: int) -> None:
        nonlocal full
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        full = full or fails(len(flushed), flushed[-1])
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", flush)
        yield flushed


def said_full(line: str, here: Path) -> bool:
    return line.startswith(f"error: {here}: No space left on device; free: ") and f" MB at {here}" in line


@pytest.mark.parametrize("place", ["/.step-000000004.", "/.step-000000008.", "/.finished-", "/models/.vqvae."])
def test_a_disk_that_is_full_when_a_training_saves_or_publishes_costs_no_more_than_that(
    write_prepared: Callable[..., None],
    write_params: Callable[..., None],
    in_tmp: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    write_prepared()
    write_params(SMALL)
    assert train_vqvae.main([]) == 0
    before = published()
    shutil.rmtree(".state")
    with flushing(monkeypatch, lambda number, path: place in path):
        assert said_full(refused(train_vqvae, capsys), in_tmp)
    assert published() == before and unfinished() == []
    shutil.rmtree("models")
    assert train_vqvae.main([]) == 0 and published() == before
    assert ("going on from step" in capsys.readouterr().err) == (place != "/.step-000000004.")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_disk_that_is_full_from_any_flush_on_ends_a_stage_in_one_line(
    done, in_tmp, write_params, capsys, monkeypatch, stage
):
    write_params(SMALL | {"runtime.pictures": 0.0})  # how many pictures are drawn depends on the time
    with flushing(monkeypatch) as flushed:
        assert stage.main([]) == 0
    assert flushed and published() == done
    for number in range(1, len(flushed) + 1):
        shutil.rmtree(".state", ignore_errors=True)
        with flushing(monkeypatch, lambda count, path, number=number: count == number):
            assert said_full(refused(stage, capsys), in_tmp), (number, flushed[number - 1])
        assert published() == done and unfinished() == [], (number, flushed[number - 1])
    assert stage.main([]) == 0 and published() == done


# Fills a disk but for some bytes, runs stages there one by one, and reports how each ended.
FILLED = """
import contextlib, importlib, io, json, os, shutil, sys, traceback
from pathlib import Path

from tessera import paths
from tessera.artifacts.files import file_hash
from tessera.training import needs

needs.free_disk = lambda folder: 2**40  # or trainings would be refused before they meet the full disk

def published():
    folders = (paths.PREPARED, paths.CODES, paths.VQVAE, paths.DECODERS, paths.PRIOR, paths.CLASSIFIER, paths.SAMPLES)
    return {str(file): file_hash(file) for folder in folders for file in folder.rglob("*") if file.is_file()}

report, *names = sys.argv[1:]
found, before = [], published()
for name in names:
    stage = importlib.import_module(name)
    for left in (0, 2**14, 2**16, 2**18):
        shutil.rmtree(".state", ignore_errors=True)
        disk = os.statvfs(".")
        Path("filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                status = stage.main([])
            except BaseException:
                status = traceback.format_exc()
        os.unlink("filler")
        lines = [line for line in said.getvalue().splitlines() if line.startswith(("error", "Traceback"))]
        found.append([name, left, status, lines, before == published()])
Path(report).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_a_disk_of_20_megabytes_that_is_full_ends_every_stage_in_one_line(done, in_tmp, tmp_path_factory, repository):
    if not shutil.which("unshare"):
        pytest.skip("no `unshare` here, with which a test mounts a file system of its own")
    outside = tmp_path_factory.mktemp("outside")
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=20m none "$0" && exec "$@"', str(outside / "disk")]
    (outside / "disk").mkdir()
    tried = subprocess.run([*mount, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a test cannot mount a file system here: {tried.stderr.strip()}")
    names = [stage.__name__ for stage in STAGES]
    inside = ["sh", "-c", 'cp -r "$0"/. "$1" && cd "$1" && shift && exec "$@"', str(in_tmp), str(outside / "disk")]
    command = [*mount, *inside, sys.executable, "-c", FILLED, str(outside / "report"), *names]
    ended = subprocess.run(command, env=by_hand(repository), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((outside / "report").read_text(encoding="utf-8"))
    assert [name for name, left, *_ in found if left == 0] == names
    for name, left, status, lines, intact in found:
        assert intact, (name, left)
        if left == 0 or status:
            assert (status, len(lines)) == (2, 1), (name, left, status, lines)
            assert lines[0].startswith("error: ") and "No space left on device; free: " in lines[0], (name, left, lines)
    assert sum(status == 2 for *_, status, _, _ in found) > 2 * len(names)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("data", "models", "results", ".state"), ("data", "models", "results")], ids=len)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_place_that_cannot_be_written_ends_a_stage_in_one_line(done, capsys, monkeypatch, stage, names):
    """Tests may run as root, whom no permission stops. So opening and making files below these folders is refused.

    Without `.state` a stage ends at its lock. With it, what the stage itself writes is refused.
    """
    places = tuple(str(Path.cwd() / name) for name in names)
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
