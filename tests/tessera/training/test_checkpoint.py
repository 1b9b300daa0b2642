"""Training state: found again by fingerprint, verified, locked, and never a pickle."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.artifacts.files import file_hash, json_text
from tessera.documents import JSON_BYTES
from tessera.errors import UserError
from tessera.locks import Busy
from tessera.training import checkpoint
from tessera.training.checkpoint import StateFolder, code_hash, fingerprint


def folder() -> StateFolder:
    return StateFolder("train_vqvae", "abc", exclusive=True)


def save(state: StateFolder, *steps: int) -> None:
    for step in steps:
        state.save(step, {"x": torch.full((3,), float(step))}, {"progress": {"step": step}}, keep=2)


def finish(state: StateFolder, step: int, keep: int = 2) -> None:
    state.finish(step, {"x": torch.full((3,), float(step))}, {"progress": {"finished": True}}, keep)


def kept(state: StateFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in state.folder.glob("step-*"))


def latest_step(state: StateFolder) -> int | None:
    found = state.latest()
    return None if found is None else found[1]["step"]


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


@pytest.mark.parametrize("fails", ["open", "read"])
def test_a_state_that_cannot_be_read_now_stops_the_run_and_stays(monkeypatch, fails: str) -> None:
    """It may be whole: the network or the disk may come back. A new training in its place would delete it."""
    with folder() as state:
        save(state, 3, 6)

        whole, error = os.open, OSError(errno.EIO, os.strerror(errno.EIO))

        def opened(path: object, *others: object) -> int:
            if "state." in str(path):
                raise error
            return whole(path, *others)

        with monkeypatch.context() as patched:
            if fails == "open":
                patched.setattr(os, "open", opened)
            else:
                digest = "tessera.artifacts.manifests.hashlib.file_digest"
                patched.setattr(digest, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(UserError, match=r"step-000000006: cannot be read now \(Input/output error\)"):
                state.latest()
        assert latest_step(state) == 6


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


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_state_without_a_key_gives_way_to_the_older_one(capsys: pytest.CaptureFixture) -> None:
    with folder() as state:
        save(state, 5)
        state.save(10, {"x": torch.zeros(3)}, {}, keep=2)
        assert latest_step(state) == 5
    assert "state.json lacks progress; this saved state is passed over" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_state_gives_way_to_the_older_one_and_says_so(damage, name, capsys: pytest.CaptureFixture) -> None:
    with folder() as state:
        save(state, 5, 10)
        damage(state.folder / "step-000000010" / name)
        assert latest_step(state) == 5
        error = capsys.readouterr().err
        assert error.startswith("warning: ") and "step-000000010" in error and "is passed over" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("replaced", [False, True])
def test_a_state_that_changes_between_its_check_and_its_use_gives_way_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, replaced: bool
) -> None:
    load = checkpoint.load_file

    def changed_before(file: Path) -> dict[str, torch.Tensor]:
        if file.parent.name == "step-000000010":
            data = file.read_bytes()
            if replaced:
                file.unlink()
            file.write_bytes(data[:-4] + bytes(4))
        return load(file)

    with folder() as state:
        save(state, 5, 10)
        monkeypatch.setattr(checkpoint, "load_file", changed_before)
        assert latest_step(state) == 5
    assert (
        "state.safetensors: changed while it was being read; this saved state is passed over" in capsys.readouterr().err
    )


def test_a_damaged_state_does_not_count_as_kept_after_the_training_went_on_from_an_older_one(
    capsys: pytest.CaptureFixture,
) -> None:
    with folder() as state:
        save(state, 60, 62)
        truncate(state.folder / "step-000000062" / "state.safetensors")
        assert latest_step(state) == 60
        save(state, 80)
        assert kept(state) == [60, 80]
        capsys.readouterr()
        for step in (60, 80):
            truncate(state.folder / f"step-{step:09d}" / "state.safetensors")
        assert latest_step(state) is None
        *each, last = capsys.readouterr().err.splitlines()
        assert len(each) == 2 and all(
            "a state cannot be made anew; this saved state is passed over" in it for it in each
        )
        assert last == f"warning: {state.folder}: no saved state is intact, so the training begins anew, at step 0"


def test_damaged_states_never_push_out_good_ones() -> None:
    with folder() as state:
        save(state, 10, 20)
        for path in state.folder.glob("step-*/state.safetensors"):
            flip_a_bit(path)
        assert latest_step(state) is None
        save(state, 5)  # the run starts again, below the damaged ones
        assert latest_step(state) == 5 and kept(state) == [5]
        save(state, 10)
        assert kept(state) == [5, 10]


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


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_pickle_in_a_states_place_is_never_run(capsys: pytest.CaptureFixture) -> None:
    with folder() as state:
        save(state, 5, 10)
        target = state.folder / "step-000000010"
        (target / "state.safetensors").write_bytes(pickle.dumps(Bomb()))
        assert latest_step(state) == 5
        # Even with a manifest that vouches for it.
        manifest = json.loads((target / "manifest.json").read_text())
        path = target / "state.safetensors"
        manifest["files"]["state.safetensors"] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
        (target / "manifest.json").write_text(json_text(manifest))
        capsys.readouterr()
        assert latest_step(state) == 5
        assert "warning: " in capsys.readouterr().err
    assert not Path("exploded").exists()
