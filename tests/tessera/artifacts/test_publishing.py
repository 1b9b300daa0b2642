"""A folder is published whole or not at all, and replaces the one before it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_models import CONFIG, TENSORS, publish

from tessera.artifacts import publishing as publishing_module
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.models import load_model
from tessera.artifacts.publishing import MANIFEST, clear_unfinished, publishing


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot exchange two names."""
    monkeypatch.setattr(publishing_module, "exchange", lambda first, second: False)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_model_comes_back_as_it_was_saved(tmp_path):
    config, tensors, manifest = load_model(publish(tmp_path / "models" / "vqvae"), "vqvae")
    assert config == CONFIG
    assert manifest.parents == {"prepared": "a" * 64}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_the_same_model_gives_the_same_bytes_in_any_order(tmp_path):
    first = contents(publish(tmp_path / "a"))
    second = contents(publish(tmp_path / "b", dict(reversed(TENSORS.items()))))
    assert first == second
    assert set(first) == {"config.json", "model.safetensors", MANIFEST}


def test_another_weight_is_another_identity(tmp_path):
    first = read_manifest(publish(tmp_path / "a"), "vqvae").identity
    other = read_manifest(publish(tmp_path / "b", {**TENSORS, "bias": torch.ones(3)}), "vqvae").identity
    assert first != other and re.fullmatch("[0-9a-f]{64}", first)


def test_publishing_again_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path):
    folder = publish(tmp_path / "vqvae")
    (folder / "stray").write_text("left by hand", encoding="utf-8")
    publish(folder, {"weight": torch.ones(2)})
    assert load_model(folder, "vqvae")[1]["weight"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["vqvae"]
    assert not (folder / "stray").exists()


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path):
    folder = publish(tmp_path / "vqvae")
    before = contents(folder)
    with pytest.raises(RuntimeError, match="disk"), publishing(folder, "vqvae", {}) as staging:
        (staging / "config.json").write_text("half", encoding="utf-8")
        raise RuntimeError("disk full")
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["vqvae"]


def test_a_failed_exchange_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = publish(tmp_path / "vqvae")
    before = contents(folder)

    def failing(first: Path, second: Path) -> bool:
        raise OSError("no space left on device")

    monkeypatch.setattr(publishing_module, "exchange", failing)
    with pytest.raises(OSError, match="no space"):
        publish(folder, {"weight": torch.ones(2)})
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["vqvae"]


def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch, no_exchange):
    folder = publish(tmp_path / "vqvae")
    before, rename = contents(folder), os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(target) == folder and ".new-" in str(source):
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        publish(folder, {"weight": torch.ones(2)})
    assert contents(folder) == before


@pytest.mark.parametrize("moment", ["before the old folder is moved", "between the two renames"])
def test_what_a_kill_leaves_is_undone_by_the_next_one(tmp_path, monkeypatch, no_exchange, moment):
    folder = publish(tmp_path / "vqvae")
    whole, rename = contents(folder), os.rename

    class Killed(BaseException):
        pass

    def die(source: Path, target: Path) -> None:
        if moment.startswith("before") or Path(source).name != "vqvae":
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        patch.setattr("tessera.artifacts.publishing.clear_unfinished", lambda *_: None)
        with pytest.raises(Killed):
            publish(folder, {"weight": torch.ones(2)})
    assert len(list(tmp_path.iterdir())) == 2 and folder.exists() == moment.startswith("before")
    clear_unfinished(tmp_path, "vqvae")
    assert contents(folder) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["vqvae"]


def test_what_a_kill_leaves_of_a_folder_with_a_pattern_in_its_name_is_deleted_too(tmp_path):
    name = "model[1]*"
    left, of_another = tmp_path / f".{name}.new-0123abcd", tmp_path / ".model1x.new-0123abcd"
    for folder in (left, of_another):
        folder.mkdir()
    publish(tmp_path / name)
    assert not left.exists() and of_another.exists()


def test_a_kill_right_after_the_exchange_leaves_the_new_folder_and_no_other(tmp_path, monkeypatch):
    folder = publish(tmp_path / "vqvae")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        publish(folder, {"weight": torch.ones(2)})
    assert len(list(tmp_path.iterdir())) == 2
    clear_unfinished(tmp_path, "vqvae")
    assert [p.name for p in tmp_path.iterdir()] == ["vqvae"]
    assert load_model(folder, "vqvae")[1]["weight"].tolist() == [1, 1]


def test_a_symbolic_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "large disk").mkdir()
    target = publish(tmp_path / "large disk" / "first")
    link = tmp_path / "vqvae"
    link.symlink_to(target)
    publish(link, {"weight": torch.ones(2)})
    assert link.is_symlink() and load_model(target, "vqvae")[1]["weight"].tolist() == [1, 1]
    assert len(list(tmp_path.iterdir())) == 2 and len(list(target.parent.iterdir())) == 1


def test_what_another_process_is_writing_is_let_be(tmp_path):
    with publishing(tmp_path / "vqvae", "vqvae", {}) as staging:
        (staging / "config.json").write_text("{}", encoding="utf-8")
        publish(tmp_path / "vqvae")
        assert (staging / "config.json").exists()
    assert contents(tmp_path / "vqvae").keys() == {"config.json", MANIFEST}


def test_checking_a_folder_needs_no_torch(repository):
    code = "import sys, tessera.artifacts.publishing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
