"""Training state: found again by fingerprint, locked, and told apart by the code that saved it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saved_states import folder, kept, latest_step, save

from tessera.documents import JSON_BYTES
from tessera.locks import Busy
from tessera.training.checkpoint import StateFolder, code_hash, fingerprint


def finish(state: StateFolder, step: int, keep: int = 2) -> None:
    state.finish(step, {"x": torch.full((3,), float(step))}, {"progress": {"finished": True}}, keep)


def test_any_change_of_stage_parameters_or_inputs_is_another_run() -> None:
    base = ("train", {"a": 1, "b": [1, 2]}, {"prepared": "x"})
    others = [
        ("train2", base[1], base[2]),
        ("train", {"a": 1.5, "b": [1, 2]}, base[2]),
        ("train", {"a": 1, "b": [2, 1]}, base[2]),
        ("train", base[1], {"prepared": "y"}),
    ]
    assert fingerprint(*base) == fingerprint("train", {"b": [1, 2], "a": 1}, {"prepared": "x"})
    assert len({fingerprint(*base), *(fingerprint(*other) for other in others)}) == 5


def test_a_state_with_the_rows_of_a_long_training_is_read(capsys: pytest.CaptureFixture) -> None:
    """It may be larger than other JSON files: with a row every step it has 64 MiB after 150,000 steps."""
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(150)]
    with folder() as state:
        state.save(150, {"x": torch.zeros(3)}, {"progress": {"train": rows}, "other": "x" * JSON_BYTES}, keep=2)
        assert state.latest()[1]["progress"]["train"] == rows
    assert capsys.readouterr().err == ""


def test_what_is_saved_is_what_is_found(capsys: pytest.CaptureFixture) -> None:
    tensors = {
        "weight": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "turned": torch.randn(4, 5).t(),
    }
    with folder() as state:
        assert state.latest() is None
        state.save(5, tensors, {"progress": {"best": 0.1 + 0.2, "worst": float("inf")}}, 2)
        found, values = state.latest()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    assert values == {"progress": {"best": 0.1 + 0.2, "worst": float("inf")}, "step": 5, "code": code_hash()}
    assert capsys.readouterr().err == ""


def test_only_the_newest_states_remain() -> None:
    with folder() as state:
        save(state, 5, 10, 15, 20)
        assert kept(state) == [15, 20] and latest_step(state) == 20


def test_a_state_half_written_is_not_seen() -> None:
    with folder() as state:
        save(state, 5)
        with pytest.raises(TypeError):
            state.save(10, {"x": torch.zeros(1)}, {"progress": object()}, 2)
        assert kept(state) == [5] and latest_step(state) == 5


def test_a_second_run_is_refused_and_told_who_holds_the_folder() -> None:
    with (
        folder(),
        pytest.raises(Busy, match=rf"process {os.getpid()} is running this training \(.*train_vqvae/abc\)"),
        folder(),
    ):
        pass
    with folder():  # free again
        pass


def test_the_processes_of_one_run_read_without_the_lock() -> None:
    with folder() as state:
        save(state, 5)
        with StateFolder("train_vqvae", "abc", exclusive=False) as reader:
            assert latest_step(reader) == 5


def test_a_lock_dies_with_its_process() -> None:
    code = (
        "import os, signal\nfrom tessera.training.checkpoint import StateFolder\n"
        "StateFolder('train_vqvae', 'abc', True).__enter__()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parent.parent.parent.parent
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    with folder() as state:
        assert (state.folder / "lock").read_text().split()[0] == str(os.getpid())


def test_states_lie_at_the_dvc_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    assert folder().folder == tmp_path / "root" / ".state" / "train_vqvae" / "abc"


def test_a_state_of_other_code_is_used_and_noted(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    with folder() as state:
        save(state, 5)
    monkeypatch.setattr("tessera.training.checkpoint.code_hash", lambda: "other")
    with folder() as state:
        assert latest_step(state) == 5
    assert "the code has changed since" in capsys.readouterr().err


def test_a_result_of_other_code_stays_and_is_not_used(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    with folder() as state:
        save(state, 3)
        finish(state, 5)
        assert kept(state) == [] and latest_step(state) == 5  # the same code: what is finished is finished
        result = state.result(5)
    with monkeypatch.context() as edit:
        edit.setattr("tessera.training.checkpoint.code_hash", lambda: "edited" * 10)
        with folder() as state:
            assert latest_step(state) is None
            said = capsys.readouterr().err
            assert f"{result} was finished, which stays there; starting anew" in said and said.count("\n") == 1
            save(state, 2, 4)
            finish(state, 5)
            assert latest_step(state) == 5 and state.result(5) != result
    with folder() as state:  # the edit is undone
        assert state.result(5) == result and latest_step(state) == 5
    assert capsys.readouterr().err == ""


def test_only_the_newest_results_of_other_codes_stay(monkeypatch) -> None:
    for i, code in enumerate(("first", "second", "third")):
        monkeypatch.setattr("tessera.training.checkpoint.code_hash", lambda code=code: code * 10)
        with folder() as state:
            finish(state, 9 - i)
            os.utime(state.result(9 - i), (i, i))
    assert sorted(path.name for path in state.folder.glob("finished-*")) == [
        "finished-000000007-thirdthirdth",
        "finished-000000008-secondsecond",
    ]


def test_the_state_names_the_code_that_runs_not_what_it_is_edited_to(monkeypatch, capsys) -> None:
    with folder() as state:
        monkeypatch.setattr("tessera.training.checkpoint.code_hash", lambda: "edited meanwhile")
        save(state, 5)
        assert latest_step(state) == 5 and capsys.readouterr().err == ""
    with folder() as state:
        latest_step(state)
    assert "the code has changed since" in capsys.readouterr().err


def test_the_codes_hash_is_of_what_it_does(monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    monkeypatch.setattr("tessera.training.checkpoint.ROOT", tmp_path)
    monkeypatch.setattr("tessera.training.checkpoint.loaded", lambda: [file])

    def hash_of(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        return code_hash()

    code = "def f(x):\n    return x + 1\n"
    commented = '"""A module."""\n\n\ndef f(x):  # adds\n    """Add one."""\n    return (x + 1)\n'
    assert hash_of(code) == hash_of(commented)
    assert len({hash_of(code), hash_of(code.replace("+ 1", "+ 2")), hash_of(code + "(")}) == 3


def test_a_comment_written_after_the_end_leaves_a_finished_run_finished(monkeypatch, tmp_path: Path, capsys) -> None:
    file = tmp_path / "module.py"
    file.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr("tessera.training.checkpoint.ROOT", tmp_path)
    monkeypatch.setattr("tessera.training.checkpoint.loaded", lambda: [file])
    with folder() as state:
        finish(state, 5)
    file.write_text('"""A constant."""\n\nx = 1  # one\n', encoding="utf-8")
    with folder() as state:
        assert latest_step(state) == 5 and capsys.readouterr().err == ""
    file.write_text("x = 2\n", encoding="utf-8")
    with folder() as state:
        assert latest_step(state) is None
    assert "starting anew" in capsys.readouterr().err
