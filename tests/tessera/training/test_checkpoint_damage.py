"""A saved state that is damaged or cannot be read: an older one is used, or the run stops, and no pickle is run."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from saved_states import folder, kept, latest_step, save

from tessera.artifacts.files import file_hash, json_text
from tessera.errors import UserError
from tessera.training import checkpoint


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
