"""python -m tessera doctor: what it finds, and its exit status."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from tessera.cli import main
from tessera.cli.doctor import folder, libraries, machine
from tessera.cli.doctor.finding import Finding, Level
from tessera.cli.start import disk
from tessera.cli.start.machine import Machine
from tessera.parameters import load
from tessera.training import tracked

Write = Callable[..., None]


@pytest.fixture
def project(in_tmp: Path, write_params: Write) -> Path:
    """A folder with params.yaml and what DVC watches."""
    write_params({})
    Path("data").mkdir(exist_ok=True)
    Path("data/embedded.txt").touch()
    return in_tmp


SLOW = Machine(threads=2, memory=2**34, gpu=None, slow_bf16="bf16 is slower than fp32 here", compiler=False)


def test_a_pipeline_that_can_run_is_status_0_and_says_what_it_needs(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for about in ("libraries", "code", "images", "devices", "memory", "disk"):
        assert f"ok       {about}" in said
    assert "train_vqvae takes about" in said and "train_prior takes about" in said
    assert "is no DVC project" in said


def test_a_mistake_in_the_parameters_is_status_1(
    project: Path, write_params: Write, capsys: pytest.CaptureFixture
) -> None:
    write_params({"sampling.temprature": 1.0})
    assert main(["doctor"]) == 1
    assert "error    parameters   params.yaml: sampling.temprature" in capsys.readouterr().out


def test_a_source_that_is_gone_is_an_error(project: Path) -> None:
    Path("data/embedded.txt").unlink()
    (finding,) = folder.look_at_source(load(Path("params.yaml")))
    assert finding.level is Level.ERROR and "data.watch" in finding.text


@pytest.mark.parametrize(
    ("requirement", "level", "said"),
    [
        ("numpy>=1", Level.OK, "numpy "),
        ("numpy>=1000", Level.ERROR, "expected >=1000"),
        ("no-such-library", Level.ERROR, "not installed; `pip install 'no-such-library'`"),
    ],
)
def test_a_library_that_is_missing_or_too_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, requirement: str, level: Level, said: str
) -> None:
    monkeypatch.setattr(libraries, "required", lambda: [Requirement(requirement)])
    found = list(libraries.look())
    assert found[0].level is level and said in found[0].text


def test_without_dvc_the_stages_run_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise libraries.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries, "required", lambda: [Requirement("dvc>=3")])
    monkeypatch.setattr(libraries.metadata, "version", missing)
    finding = next(libraries.look())
    assert finding.level is Level.WARNING and "each stage runs by hand" in finding.text


def test_a_library_that_cannot_be_imported_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert libraries.broken("torn") == "RuntimeError: operator torchvision::nms does not exist"
    assert libraries.broken("json") is None and libraries.broken("no_such_module") is None


def test_what_pyproject_requires_is_what_is_looked_at(repository: Path) -> None:
    assert {"torch", "dvc", "pydantic"} <= {requirement.name for requirement in libraries.required()}


def test_bf16_without_instructions_is_a_warning_and_compiling_without_a_compiler_an_error(
    in_tmp: Path, write_params: Write
) -> None:
    write_params({"stage1_vqvae.training.precision": "bf16", "stage1_vqvae.training.compile": True})
    slow, compiler = machine._speed(load(Path("params.yaml")).trainings(), SLOW)
    assert slow.level is Level.WARNING and "-S stage1_vqvae.training.precision=fp32" in slow.text
    assert compiler.level is Level.ERROR and "-S stage1_vqvae.training.compile=false" in compiler.text


def test_a_training_that_needs_more_memory_than_is_free_is_an_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda device: 10**6)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "lower stage1_vqvae.training.batch_size, or set runtime.micro_batch below 8" in said


def rooms(write_params: Write, monkeypatch: pytest.MonkeyPatch, free: int, **changes: object) -> list[Finding]:
    """What the doctor says about the memory of the trainings."""
    write_params({path.replace("__", "."): value for path, value in changes.items()})
    monkeypatch.setattr(machine, "free_bytes", lambda device: free)
    params = load(Path("params.yaml"))
    found = machine._room(params, machine.image_stats(params), torch.device("cpu"), 1)
    return [finding for finding in found if finding.about == "memory"]


def test_a_batch_in_pieces_is_judged_by_a_piece(
    project: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {"stage1_vqvae__training__batch_size": 100_000}
    free = int(machine.LIBRARIES) + 10**8
    assert rooms(write_params, monkeypatch, free, **many)[0].level is Level.ERROR
    assert rooms(write_params, monkeypatch, free, **many, runtime__micro_batch=8)[0].level is Level.OK


def test_a_refined_decoder_is_judged_where_one_is_trained(
    project: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rooms(write_params, monkeypatch, 10**12)[1].text.startswith("train_prior")
    refined = {"refine_decoder__name": "objective"}
    refined["refine_decoder__objective__adversarial__discriminator__name"] = "patch"  # it needs no weights of others
    found = rooms(write_params, monkeypatch, 10**12, **refined)
    assert [finding.text.split()[0] for finding in found[:3]] == ["train_vqvae", "refine_decoder", "train_prior"]


@pytest.mark.parametrize("name", ["counts", "uniform"])
def test_a_prior_that_is_not_trained_needs_no_memory_for_it(
    project: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = rooms(write_params, monkeypatch, 10**12, stage2_prior__name=name)
    assert [finding.text.split()[0] for finding in found] == ["train_vqvae"]


def test_weights_that_are_missing_are_an_error(
    project: Path, write_params: Write, capsys: pytest.CaptureFixture
) -> None:
    network = {"name": "vgg16", "file": "nowhere.pth", "side": 32}
    terms = {"perceptual": {"weight": 1.0, "features": network}, "adversarial": {"weight": 0.0}}
    write_params({"refine_decoder.name": "objective", "refine_decoder.objective": terms})
    assert main(["doctor"]) == 1
    assert "error    weights      nowhere.pth: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runtime.processes": 3}, "training     stage1_vqvae.training.batch_size: 8 is the global batch"),
        (
            {"runtime.log_every": 1, "stage2_prior.training.steps": 2_000_000},
            "training     runtime.log_every: 1: with stage2_prior.training.steps, train.csv would have 2,000,000 rows",
        ),
        (
            {"runtime.micro_batch": 4, "stage1_vqvae.quantizer.vq.entropy_bonus": 0.1},
            "training     runtime.micro_batch: 4: ",
        ),
        ({"runtime.trackers": ["wandb"]}, "trackers     runtime.trackers: wandb is not installed"),
        (
            {"stage1_vqvae.training.initialise_from": "gone"},
            "weights      stage1_vqvae.training.initialise_from: 'gone': no such folder",
        ),
        (
            {"stage2_prior.training.initialise_from": "params.yaml"},
            "weights      stage2_prior.training.initialise_from: 'params.yaml': no such folder",
        ),
    ],
)
def test_what_will_refuse_a_training_is_an_error(
    project: Path,
    write_params: Write,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    said: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(tracked, "find_spec", lambda name: None)
    write_params(changes)
    assert main(["doctor"]) == 1
    assert f"error    {said}" in capsys.readouterr().out


def test_all_that_will_refuse_a_training_is_told(project: Path, write_params: Write) -> None:
    changes = {"stage1_vqvae.training.steps": 2_000_000, "stage1_vqvae.quantizer.vq.entropy_bonus": 0.1}
    write_params(changes | {"runtime.log_every": 1, "runtime.micro_batch": 4, "stage2_prior.name": "counts"})
    params = load(Path("params.yaml"))
    found = machine._room(params, machine.image_stats(params), torch.device("cpu"), 3)
    told = [finding.text.split(":")[0] for finding in found if finding.about == "training"]
    assert told == ["stage1_vqvae.training.batch_size", "runtime.log_every", "runtime.micro_batch"]


def test_a_failure_of_git_is_told_in_its_own_words(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = in_tmp / "bin" / "git"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "fatal: $GIT_SAYS" >&2\nexit 128\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("GIT_SAYS", "not a git repository (or any of the parent directories): .git")
    assert "is in no Git repository" in list(folder._git())[-1].text
    monkeypatch.setenv("GIT_SAYS", "detected dubious ownership in repository at '/here'")
    finding = list(folder._git())[-1]
    assert finding.level is Level.WARNING and "detected dubious ownership in repository" in finding.text
    assert "is in no Git repository" not in finding.text


def test_a_compiled_training_that_may_fit_is_a_warning(
    project: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqvae, prior, *_ = rooms(write_params, monkeypatch, 10**6, stage1_vqvae__training__compile=True)
    assert vqvae.level is Level.WARNING and "a compiled step takes less" in vqvae.text
    assert prior.level is Level.ERROR


@pytest.mark.parametrize("place", [".", "data", "models", "results", ".state"])
def test_a_folder_that_cannot_be_written_is_an_error(in_tmp: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Tests may run as root, whom no permission stops."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("data/prepared", "models", "results", ".state"):
        Path(name).mkdir(parents=True)
    assert list(folder._writable()) == []
    asked = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path(place) and asked(path, mode))
    (finding,) = folder._writable()
    assert finding.level is Level.ERROR and finding.text.startswith(f"{Path(place).absolute()} cannot be written")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ".dvc/cache"),
        ({"config": "[core]\n    analytics = false\n"}, ".dvc/cache"),
        ({"config": "[cache]\n    dir = /big/cache\n"}, "/big/cache"),
        ({"config": "[cache]\n    dir = /big/cache\n", "config.local": "[cache]\n    dir = ../own\n"}, ".dvc/../own"),
        ({"config": "no section"}, ".dvc/cache"),
    ],
)
def test_dvcs_copies_are_counted_where_its_settings_put_them(
    in_tmp: Path, settings: dict[str, str], expected: str
) -> None:
    Path(".dvc").mkdir()
    for name, text in settings.items():
        (Path(".dvc") / name).write_text(text)
    assert disk.cache() == Path(expected)


def test_each_disk_is_judged_by_the_folders_on_it(in_tmp: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == in_tmp.stat().st_dev:
        pytest.skip("no second disk on this system")
    with tempfile.TemporaryDirectory(dir=other) as states:
        Path(".state").symlink_to(states)
        wanted = {Path("data/prepared"): 10**6, Path(".state"): 10**15, Path("models"): 10**6}
        here, there = machine.disks(wanted)
    assert here.level is Level.OK and here.text.startswith("data/prepared, models: a run takes about 0.00 GB")
    assert there.level is Level.ERROR and there.text.startswith(".state: a run takes about 1000000.00 GB")


def test_what_is_found_is_one_line_whatever_a_name_holds() -> None:
    line = str(Finding(Level.OK, "images", "a\x1b[2Jfolder\nof two lines"))
    assert line == r"ok       images       a\x1b[2Jfolder\nof two lines"


def test_old_states_are_a_warning(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    state = in_tmp / ".state/train_prior/abc"
    (state / "step-000000010").mkdir(parents=True)
    assert [finding.level for finding in folder._states()] == [Level.OK]
    long_ago = time.time() - 86400 * 30
    for path in (state / "step-000000010", state):
        os.utime(path, (long_ago, long_ago))
    (finding,) = folder._states()
    assert finding.level is Level.WARNING and "1 older than 14 days" in finding.text
