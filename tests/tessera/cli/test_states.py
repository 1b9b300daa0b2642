"""python -m tessera states."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stage1_vqvae import train
from tessera.artifacts.arrays import array_parts
from tessera.artifacts.parts import PartFolder
from tessera.cli import main, states
from tessera.cli.doctor.folder import _states as look_at_states
from tessera.errors import UserError
from tessera.launch.shares import Share
from tessera.training.checkpoint import StateFolder

DAY = 86400


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)


def make(stage: str, identity: str, *steps: int, finished: int = 0, days: float = 0) -> StateFolder:
    """A training's saved states, `days` old."""
    with StateFolder(stage, identity, True) as state:
        for step in steps:
            state.save(step, {"x": torch.zeros(250)}, {"progress": {}}, 2)
        if finished:
            state.finish(finished, {"x": torch.zeros(250)}, {"progress": {}}, 2)
    then = time.time() - days * DAY
    for path in (state.folder, *state.folder.rglob("*")):
        os.utime(path, (then, then))
    return state


def test_a_line_for_each_training_says_stage_step_size_and_age(capsys: pytest.CaptureFixture) -> None:
    make("train_prior", "0123456789abcdef", 500, 1000, days=2.5)
    finished = make("train_vqvae", "fedcba9876543210", finished=1200, days=0.1)
    make("train_vqvae", "aaaabbbbccccdddd")
    with StateFolder("train_prior", "9999", True):
        assert main(["states"]) == 0
    *rows, total = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[1:] for row in rows}
    assert found["train_prior/0123456789ab"][:3] == ["stopped", "step", "1,000"]
    assert found["train_prior/0123456789ab"][-3:] == ["2", "days", "ago"]
    assert found["train_vqvae/fedcba987654"][:3] == ["finished", "step", "1,200"]
    size = sum(path.stat().st_size for path in finished.folder.rglob("*") if path.is_file())
    assert 1000 < size < 9000 and found["train_vqvae/fedcba987654"][3:5] == [f"{size / 1000:.1f}", "kB"]
    assert found["train_vqvae/aaaabbbbcccc"][:4] == ["stopped", "nothing", "saved", "yet"]
    assert found["train_prior/9999"][0] == "running" and rows[-1][0] == "train_prior/0123456789ab"
    assert total[:2] == ["4", "trainings,"]


def test_parts_of_an_interrupted_stage_are_counted_and_it_is_no_training_to_stop(
    capsys: pytest.CaptureFixture,
) -> None:
    processes = SimpleNamespace(is_main_process=True, device=torch.device("cpu"), wait_for_everyone=lambda: None)
    with pytest.raises(RuntimeError), PartFolder("sample", "0123", processes) as folder:
        for part in array_parts("default", "images", 9, 4):
            with folder.writing(part.name, (2,), np.uint8) as writer:
                writer.append(np.zeros((part.rows.stop - part.rows.start, 2), np.uint8))
        assert main(["stop", "sample"]) == 2
        assert main(["states"]) == 0
        raise RuntimeError
    assert capsys.readouterr().out.split()[:4] == ["sample/0123", "running", "3", "parts"]
    assert main(["states", "--delete", "sample/0123"]) == 0 and not folder.folder.exists()


@pytest.mark.parametrize("command", ["states", "doctor"])
def test_files_that_a_running_stage_deletes_meanwhile_are_left_out(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    state, walk = make("train_prior", "0123456789abcdef", 500, 1000), os.walk

    def deleting(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
        for place, folders, names in walk(folder):
            if "step-000000500" in place:
                shutil.rmtree(place, ignore_errors=True)
            yield place, folders, names

    monkeypatch.setattr("tessera.training.running.os.walk", deleting)
    if command == "doctor":
        (found,) = look_at_states()
        assert found.text.startswith("1 runs, 0 MB in .state; 0 running now")
        return
    assert main(["states"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["train_prior/0123456789ab", "stopped", "step", "1,000"]
    assert not (state.folder / "step-000000500").exists()


def test_states_that_are_newer_than_the_clock_are_of_now(capsys: pytest.CaptureFixture) -> None:
    make("train_prior", "0123456789abcdef", 500, days=-3)
    assert main(["states"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("  now")


def test_nothing_saved_is_no_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["states"]) == 0
    assert capsys.readouterr().out == "0 trainings, 0 B in .state\n"


def test_what_is_named_is_deleted_and_nothing_else(capsys: pytest.CaptureFixture) -> None:
    deleted, kept = make("train_prior", "01ab", 5), make("train_prior", "01ff", 5)
    assert main(["states", "--delete", "train_prior/01"]) == 2  # of both
    assert "2 trainings have a name that begins so" in capsys.readouterr().err
    assert main(["states", "--delete", "train_prior/02"]) == 2
    assert "no training has this name" in capsys.readouterr().err
    assert main(["states", "--delete", "train_prior"]) == 2
    assert main(["states", "--delete", "train_prior/01a"]) == 0
    assert not deleted.folder.exists() and kept.latest()
    assert "train_prior/01ab: deleted\n1 deleted, " in capsys.readouterr().out


def test_one_state_is_deleted_and_the_others_of_its_training_stay(capsys: pytest.CaptureFixture) -> None:
    state = make("train_prior", "01ab", 3, 6)
    assert main(["states", "--delete", "train_prior/01/step-000000009"]) == 2
    assert "no such state; there are step-000000003, step-000000006" in capsys.readouterr().err
    with state:
        assert main(["states", "--delete", "train_prior/01/step-000000006"]) == 75
    assert main(["states", "--delete", "train_prior/01/step-000000006"]) == 0
    assert capsys.readouterr().out.startswith("train_prior/01ab/step-000000006: deleted\n1 deleted, ")
    assert state.latest()[1]["step"] == 3
    assert main(["states", "--delete", "train_prior/01/step-000000003", "train_prior/01ab"]) == 0
    assert not state.folder.exists()


def test_the_advice_for_a_state_that_cannot_be_read_leaves_the_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    state, whole = make("train_prior", "01ab", 3, 6), os.open

    def opened(path: object, *others: object, **named: object) -> int:
        if "step-000000006" in str(path) and "state." in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path, *others, **named)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(UserError) as refusal:
        state.latest()
    advised = re.search("`python -m tessera (.*)`", str(refusal.value))[1].split()
    assert main(advised) == 0
    assert state.latest()[1]["step"] == 3


def test_a_running_training_is_never_deleted(capsys: pytest.CaptureFixture) -> None:
    state = make("train_prior", "01ab", 5, days=9)
    with state:
        os.utime(state.folder / "lock", (1, 1))
        os.utime(state.folder, (1, 1))
        assert main(["states", "--delete", "train_prior/01ab"]) == 75
        assert (
            f"train_prior/01ab: is running (process {os.getpid()}); `python -m tessera stop train_prior` ends it\n"
            in capsys.readouterr().err
        )
        assert main(["states", "--delete-older-than", "1"]) == 0
        assert state.latest()


def test_parts_are_never_deleted_under_a_job_of_an_array(capsys: pytest.CaptureFixture) -> None:
    processes = SimpleNamespace(is_main_process=True, device=torch.device("cpu"), wait_for_everyone=lambda: None)
    with PartFolder("sample", "0123", processes, Share(3, 8)) as folder:
        os.utime(folder.folder, (1, 1))
        assert main(["states"]) == 0 and "running" in capsys.readouterr().out
        assert main(["states", "--delete", "sample/0123"]) == 75
        said = capsys.readouterr().err
        assert f"sample/0123: is running (process {os.getpid()}); wait for it, or stop it\n" in said
        assert main(["states", "--delete-older-than", "0"]) == 0 and folder.folder.is_dir()
    assert main(["states", "--delete", "sample/0123"]) == 0 and not folder.folder.exists()


def test_a_job_that_begins_while_its_parts_are_about_to_be_deleted_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = SimpleNamespace(is_main_process=True, device=torch.device("cpu"), wait_for_everyone=lambda: None)
    with PartFolder("sample", "0123", processes, Share(3, 8)) as folder:
        monkeypatch.setattr(states, "holder_of", lambda folder: None)  # it was not there a moment ago
        assert main(["states", "--delete", "sample/0123"]) == 75 and folder.folder.is_dir()


def test_what_is_older_than_some_days_is_deleted(capsys: pytest.CaptureFixture) -> None:
    old, new = make("train_prior", "old", 5, days=8), make("train_vqvae", "new", 5, days=6)
    assert main(["states", "--delete-older-than", "7"]) == 0
    assert not old.folder.exists() and new.latest()
    assert main(["states", "--delete-older-than", "-1"]) == 2


@pytest.fixture
def finished(write_params: Callable[..., None], write_prepared: Callable[..., None]) -> Path:
    """The result of a finished training of stage 1, which has published it."""
    write_prepared()
    write_params()
    assert train.main([]) == 0
    (result,) = Path(".state/train_vqvae").glob("*/finished-*")
    return result


def test_a_result_is_published_elsewhere_as_its_stage_published_it(
    finished: Path, in_tmp: Path, capsys: pytest.CaptureFixture
) -> None:
    name = "/".join(finished.parts[-3:])
    for given, folder in ((name, "there"), (name.rpartition("/")[0][:20], "again")):
        assert main(["states", "--publish", given, folder]) == 0
        written = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
        assert len(written) == 3 + 3
        for path in written:
            assert (Path(folder) / path).read_bytes() == path.read_bytes(), path
    assert main(["states", "--publish", name, "there"]) == 2
    assert "there: exists" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["models/mine", "results", ".state/x", "data/prepared/../../models/vqvae"])
def test_nothing_is_published_where_stages_write(finished: Path, folder: str, capsys: pytest.CaptureFixture) -> None:
    before = Path("models/vqvae/manifest.json").read_bytes()
    assert main(["states", "--publish", "/".join(finished.parts[-3:]), folder]) == 2
    assert "a stage writes there" in capsys.readouterr().err
    assert Path("models/vqvae/manifest.json").read_bytes() == before and not Path("models/mine").exists()


def test_a_damaged_or_missing_result_is_told(finished: Path, capsys: pytest.CaptureFixture) -> None:
    weights, name = finished / "state.safetensors", "/".join(finished.parts[-3:])
    assert main(["states", "--publish", name + "x", "there"]) == 2
    assert "the training is finished" in capsys.readouterr().err
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["states", "--publish", name, "there"]) == 2
    assert ": damaged: " in capsys.readouterr().err and not Path("there").exists()
