"""Manifests: every file by hash, large arrays by blocks, and only files inside the folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.artifacts.files import file_hash
from tessera.artifacts.manifests import BLOCK, MANIFEST, manifest_text, open_manifest, read_manifest
from tessera.artifacts.publishing import publishing
from tessera.errors import UserError


def publish(folder: Path) -> Path:
    """A folder with a small file, a small array and an array of two and a half blocks."""
    with publishing(folder, "codes", {"vqvae": "c" * 64}) as staging:
        (staging / "train").mkdir()
        (staging / "layout.json").write_text('{"a": [1, 2]}', encoding="utf-8")
        np.save(staging / "train" / "small.npy", np.arange(10))
        np.save(staging / "train" / "large.npy", np.arange(BLOCK * 5 // 2, dtype=np.uint8))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest as somebody would who also makes its own hash right."""
    raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(raw)
    (folder / MANIFEST).write_text(manifest_text(raw["kind"], raw["parents"], raw["files"]), encoding="utf-8")


def test_every_file_is_named_by_hash_and_large_arrays_by_blocks(tmp_path):
    folder = publish(tmp_path / "codes")
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    assert list(files) == ["layout.json", "train/large.npy", "train/small.npy"]
    for name, entry in files.items():
        assert entry["bytes"] == (folder / name).stat().st_size and entry["sha256"] == file_hash(folder / name)
    data = (folder / "train/large.npy").read_bytes()
    blocks = [hashlib.sha256(data[start : start + BLOCK]).hexdigest() for start in range(0, len(data), BLOCK)]
    assert files["train/large.npy"]["blocks"] == blocks and len(blocks) == 3
    assert "blocks" not in files["train/small.npy"] and "blocks" not in files["layout.json"]


def test_the_same_files_give_the_same_manifest(tmp_path):
    texts = {(publish(tmp_path / name) / MANIFEST).read_bytes() for name in ("a", "b")}
    assert len(texts) == 1


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "train/../../secret", "./a", "train//a", "", "a\nb", ".."]
)
def test_a_manifest_names_files_inside_the_folder_only(tmp_path, name):
    folder = publish(tmp_path / "codes")
    (tmp_path / "secret").write_bytes(b"1")
    rewrite(folder, lambda raw: raw["files"].update({name: {"bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()}}))
    with pytest.raises(UserError, match=r"which is not inside the folder; make it anew") as caught:
        read_manifest(folder, "codes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["layout.json", "train/large.npy", "train"])
@pytest.mark.parametrize("contents", [False, True])
def test_a_symbolic_link_is_refused_even_to_the_same_contents(tmp_path, place, contents):
    folder = publish(tmp_path / "codes")
    (folder / place).rename(tmp_path / "elsewhere")
    (folder / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"a symbolic link.*dvc config cache\.type"):
        read_manifest(folder, "codes", contents)


def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(tmp_path):
    folder = publish(tmp_path / "codes")
    (folder / "layout.json").unlink()
    os.mkfifo(folder / "layout.json")
    with pytest.raises(UserError, match=r"layout\.json: not a regular file"):
        read_manifest(folder, "codes", contents=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["files"]["train/large.npy"].pop("blocks"),
        lambda raw: raw["files"]["train/large.npy"]["blocks"].pop(),
        lambda raw: raw["files"]["train/small.npy"].update(blocks=["0" * 64]),
        lambda raw: raw["files"]["layout.json"].update(bytes=-1),
        lambda raw: raw["files"]["layout.json"].update(bytes="13"),
        lambda raw: raw["files"]["layout.json"].update(sha256="x"),
        lambda raw: raw["files"]["layout.json"].update(sha256=None),
        lambda raw: raw["files"]["layout.json"].pop("sha256"),
        lambda raw: raw["files"].update({"layout.json": []}),
        lambda raw: raw["files"]["layout.json"].update(bytes=13.0),
        lambda raw: raw["files"]["layout.json"].update(bytes=True),
        lambda raw: raw.update(parents=[1]),
        lambda raw: raw.update(files=[]),
        lambda raw: raw.update(kind=["codes"]),
    ],
)
def test_a_manifest_of_another_form_is_one_line(tmp_path, change):
    folder = publish(tmp_path / "codes")
    rewrite(folder, change)
    with pytest.raises(UserError, match=r"make it anew with `python -m stage1_vqvae\.extract`") as caught:
        open_manifest(folder, "codes")
    assert "\n" not in str(caught.value)


def test_a_manifest_without_its_own_hash_or_with_blocks_of_another_size_is_refused(tmp_path):
    folder = publish(tmp_path / "codes")
    raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for change in ({"block_bytes": 4096}, {"parents": {}}, {"sha256": "0" * 64}):
        (folder / MANIFEST).write_text(json.dumps(raw | change), encoding="utf-8")
        with pytest.raises(UserError, match=r"manifest\.json: damaged, or written by another version"):
            open_manifest(folder, "codes")


def test_files_are_checked_when_they_are_read(tmp_path):
    folder = publish(tmp_path / "codes")
    manifest = open_manifest(folder, "codes")
    assert manifest.read_json("layout.json") == {"a": [1, 2]}
    (folder / "layout.json").write_text('{"a": [1, 3]}', encoding="utf-8")
    with pytest.raises(UserError, match=r"layout\.json: its contents differ"):
        manifest.read("layout.json")
    with pytest.raises(UserError, match=r"layout\.json: its contents differ"):
        open_manifest(folder, "codes")
    with pytest.raises(UserError, match=r"other\.json: not listed"):
        manifest.read("other.json")


def test_opening_checks_small_files_whole_and_the_sizes_of_arrays(tmp_path):
    folder = publish(tmp_path / "codes")
    file = folder / "train" / "large.npy"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    open_manifest(folder, "codes")  # an array's contents are checked when they are read
    with pytest.raises(UserError, match=r"large\.npy: its contents differ"):
        read_manifest(folder, "codes")
    file.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"large\.npy: \d+ bytes instead of"):
        open_manifest(folder, "codes")
