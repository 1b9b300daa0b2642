"""What one process makes is what two and three make: tokens, images and pictures byte for byte, figures within 1e-9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_sources import png
from whole_runs import Environment, by_hand, copies, is_free, run, succeed, torchrun, wait_for

from evaluation import train_classifier
from stage1_vqvae import extract, train
from stage2_prior import train as train_prior
from tessera.launch.processes import USE_CPU

pytestmark = pytest.mark.slow
Write = Callable[..., None]


@pytest.fixture
def environment(repository: Path) -> Environment:
    return by_hand(repository, forked=True) | {USE_CPU: "1"}


@pytest.fixture
def models(
    in_tmp: Path, write_params: Write, write_prepared: Write, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`models(images, changes)`: data/prepared, a VQ-VAE, codes, a prior and a classifier, all tiny."""
    monkeypatch.setenv(USE_CPU, "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def make(images: dict[str, int], changes: dict | None = None) -> None:
        write_prepared(images=images)
        few = {"steps": 10, "warmup_steps": 2, "batch_size": 16, "validate_every": 10}
        write_params(
            {
                "stage2_prior.training.steps": 5,
                "classifier.conv.channels": 8,
                **{f"classifier.training.{name}": value for name, value in few.items()},
                **(changes or {}),
            }
        )
        for module in (train, extract, train_prior, train_classifier):
            assert module.main([]) == 0

    return make


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """The files of some folders, by their paths."""
    files = [path for name in names for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def numbers(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of a JSON value, with their places."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, f"{place}.{name}")
    else:
        yield place, value


STAGES = ("stage1_vqvae.reconstruct", "stage1_vqvae.extract", "sampling.sample", "evaluation.evaluate")


def test_one_two_and_three_processes_make_the_same(in_tmp: Path, models: Callable, environment: Environment) -> None:
    # More images than three rounds of what is measured at a time, and samples of three parts a kind.
    changes = {"sampling.images": 2100, "sampling.batch_size": 100, "extract_codes.refine": 3}
    models({"train": 100, "validation": 70, "test": 200}, changes)
    folders = copies(in_tmp, "one", "two", "three")
    for count, folder in enumerate(folders, 1):
        for module in STAGES:
            launcher = ["python"] if count == 1 else torchrun(count)
            succeed(folder, [*launcher, "-m", module], environment)
    made = ("data", "results/extract_codes", "results/reconstruct", "results/sample", "results/evaluate/images")
    one, two, three = (contents(folder, *made) for folder in folders)
    assert one == two == three
    assert sum("images-0000" in name for name in one) == 6 and sum("codes-0000" in name for name in one) == 11
    assert not [folder for folder in folders if list((folder / ".state" / "sample").iterdir())]
    figures = [dict(numbers(json.loads((folder / "results/evaluate/metrics.json").read_text()))) for folder in folders]
    assert len(figures[0]) > 20
    for other in figures[1:]:
        named = {place: value for place, value in figures[0].items() if isinstance(value, str)}
        assert {place: other.pop(place) for place in named} == named
        values = {place: value for place, value in figures[0].items() if place not in named}
        assert other == pytest.approx(values, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize(("bad", "counts"), [(0, (1, 2)), (7, (1, 2, 3))])
def test_one_two_and_three_processes_prepare_the_same(
    in_tmp: Path, write_params: Write, environment: Environment, bad: int, counts: tuple[int, ...]
) -> None:
    """Broken images stand in every process's share, so that what each writes is moved together at the end."""
    for number in range(100):
        file = in_tmp / "images" / ("train" if number < 80 else "test") / f"class {number % 3}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no image" if bad and number % 10 == bad else png(number))
    images = str(in_tmp / "images")
    write_params({"data.source": images, "data.watch": images, "data.max_bad_fraction": 0.2})
    folders = []
    for count in counts:
        folder = in_tmp / str(count)
        folder.mkdir()
        shutil.copy(in_tmp / "params.yaml", folder)
        launcher = ["python"] if count == 1 else torchrun(count)
        succeed(folder, [*launcher, "-m", "stage0_images.prepare"], environment)
        folders.append(contents(folder, "data"))
    assert all(folder == folders[0] for folder in folders)
    refused = folders[0]["data/prepared/quarantine.jsonl"].decode().splitlines()
    assert len(refused) == (10 if bad else 0) and len(folders[0]) == 9


def test_a_source_that_is_refused_is_refused_by_its_own_reason_in_three_processes(
    in_tmp: Path, write_params: Write, environment: Environment
) -> None:
    """The first process fails and removes its folder for the copy, which the others look for."""
    (in_tmp / "images").mkdir()
    images = str(in_tmp / "images")
    write_params({"data.source": images, "data.watch": images, "runtime.processes": 3})
    done = run(in_tmp, ["python", "-m", "stage0_images.prepare"], environment)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("is an empty folder; put images there")
    assert "made this folder" not in done.stderr


PARTS = {
    "stage1_vqvae.extract": ("extract_codes", {"extract_codes.shift": 2, "extract_codes.horizontal_flip": True}),
    "sampling.sample": ("sample", {"sampling.images": 6000, "sampling.batch_size": 50}),
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("module", list(PARTS))
def test_what_was_killed_half_way_goes_on_to_the_same_bytes(
    in_tmp: Path, models: Callable, environment: Environment, repository: Path, module: str, processes: int
) -> None:
    stage, changes = PARTS[module]
    models({"train": 1500, "validation": 70, "test": 70}, {"stage2_prior.layers": 2, **changes})
    whole, killed = copies(in_tmp, "whole", "killed")
    made = ("data/codes", "results/extract_codes") if stage == "extract_codes" else ("results/sample",)
    for folder in (whole, killed):
        shutil.rmtree(folder / made[0], ignore_errors=True)  # as DVC does before it runs a stage
    command = [*(["python"] if processes == 1 else torchrun(processes)), "-m", module]
    succeed(whole, command, environment)

    def records() -> list[Path]:
        return sorted((killed / ".state" / stage).rglob("*.npy.json"))

    with subprocess.Popen(
        command,
        cwd=killed,
        env=by_hand(repository) | {USE_CPU: "1"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_for(lambda: len(records()) >= 4 or process.poll() is not None, "no parts were made")
        os.killpg(process.pid, signal.SIGKILL)
    (lock,) = (killed / ".state" / stage).glob("*/lock")
    wait_for(lambda: is_free(lock), "a process lives on")
    before = len(records())
    assert before >= 4 and not (killed / made[0]).exists()
    done = run(killed, command, environment)
    assert done.returncode == 0, done.stderr
    assert f"going on after {before} of " in done.stderr
    assert contents(whole, *made) == contents(killed, *made)
