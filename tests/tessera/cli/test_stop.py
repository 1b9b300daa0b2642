"""python -m tessera stop STAGE."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.cli import main
from tessera.training.checkpoint import StateFolder


@pytest.fixture(autouse=True)
def in_an_empty_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)


def test_the_running_training_is_asked_to_end(capsys) -> None:
    with StateFolder("train_prior", "a", True) as state, StateFolder("train_vqvae", "b", True) as other:
        assert not state.end_requested()
        assert main(["stop", "train_prior"]) == 0
        assert state.end_requested() and not other.end_requested()
    assert capsys.readouterr().out == "train_prior: ends at its next validation, and publishes its best weights\n"


def test_without_a_stage_the_one_training_that_is_running_is_meant(capsys) -> None:
    assert main(["stop"]) == 2
    assert "error: no training is running in this folder" in capsys.readouterr().err
    with StateFolder("train_prior", "a", True) as state:
        assert main(["stop"]) == 0 and state.end_requested()
    with StateFolder("train_prior", "c", True) as state, StateFolder("train_vqvae", "b", True) as other:
        assert main(["stop"]) == 2
        assert not state.end_requested() and not other.end_requested()
    assert "2 trainings are running: train_prior, train_vqvae; name one of them" in capsys.readouterr().err


@pytest.mark.parametrize(("running", "told"), [("train_vqvae", "; what is running is train_vqvae"), (None, " in this")])
def test_a_stage_that_is_not_running_is_told_with_what_is(running, told, capsys) -> None:
    StateFolder("train_prior", "a", True).__enter__().__exit__()  # it has been running
    with StateFolder(running or "train_prior", "b", bool(running)):
        assert main(["stop", "train_prior"]) == 2
    assert f"error: no training of the stage 'train_prior' is running{told}" in capsys.readouterr().err


def test_a_request_does_not_outlive_the_training_that_it_was_for() -> None:
    with StateFolder("train_prior", "a", True):
        main(["stop", "train_prior"])
    with StateFolder("train_prior", "a", True) as state:
        assert not state.end_requested()
