"""Published folders that are damaged, foreign, of another kind or of another parent are refused."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from published_models import CONFIG, publish

from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import REMEDY, read_manifest
from tessera.artifacts.models import load_model
from tessera.artifacts.publishing import MANIFEST, publishing
from tessera.errors import UserError


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MANIFEST])
def test_truncation_anywhere_is_noticed(tmp_path, name):
    folder = publish(tmp_path / "vqvae")
    whole = (folder / name).read_bytes()
    for length in sorted({0, 1, 8, len(whole) // 2, len(whole) - 2}):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=re.escape(REMEDY["vqvae"])) as caught:
            load_model(folder, "vqvae")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_is_noticed(tmp_path, name):
    folder = publish(tmp_path / "vqvae")
    whole = (folder / name).read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"SHA-256 .*make it anew with"):
            load_model(folder, "vqvae")


def test_a_flipped_bit_anywhere_in_a_manifest_is_one_error(tmp_path):
    with publishing(tmp_path / "state", "state", {}) as staging:
        (staging / "state.json").write_text("{}", encoding="utf-8")
    path = tmp_path / "state" / MANIFEST
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="; a state cannot be made anew") as caught:
            read_manifest(tmp_path / "state", "state")
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_folder_name_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no vqvae here .*python -m stage1_vqvae\.train"):
        load_model(tmp_path / "vqvae", "vqvae")
    folder = publish(tmp_path / "vqvae")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing; .*stage1_vqvae\.train"):
        load_model(folder, "vqvae")


def test_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a prior, found a vqvae; .*stage2_prior\.train"):
        load_model(publish(tmp_path / "prior"), "prior")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"kind": "vqvae", "parents": {}}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    folder = publish(tmp_path / "vqvae")
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json: (damaged|not valid JSON).*make it anew with"):
        read_manifest(folder, "vqvae")


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    """Even one whose manifest agrees with it: safetensors is the only format that is read."""
    folder, marker = publish(tmp_path / "vqvae"), tmp_path / "marker"
    with publishing(folder, "vqvae", {}) as staging:
        (staging / "config.json").write_text(json_text(CONFIG), encoding="utf-8")
        (staging / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(UserError, match=r"not a readable safetensors model .*pickles are never loaded"):
        load_model(folder, "vqvae")
    assert not marker.exists()


def test_a_torch_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "vqvae"
    with publishing(folder, "vqvae", {}) as staging:
        (staging / "config.json").write_text("{}", encoding="utf-8")
        torch.save({"weight": torch.zeros(2)}, staging / "model.safetensors")
    with pytest.raises(UserError, match="pickles are never loaded"):
        load_model(folder, "vqvae")


def test_sizes_alone_can_be_checked(tmp_path):
    folder = publish(tmp_path / "vqvae")
    data = bytearray((folder / "config.json").read_bytes())
    data[0] ^= 1
    (folder / "config.json").write_bytes(data)
    read_manifest(folder, "vqvae", contents=False)
    (folder / "config.json").write_bytes(data[:-1])
    with pytest.raises(UserError, match="bytes instead of"):
        read_manifest(folder, "vqvae", contents=False)


def test_another_parent_is_refused_with_both_hashes_and_the_command(tmp_path):
    folder = publish(tmp_path / "vqvae")
    manifest = read_manifest(folder, "vqvae")
    manifest.require_parent("prepared", "a" * 64, folder)
    with pytest.raises(UserError) as caught:
        manifest.require_parent("prepared", "b" * 64, folder)
    assert all(word in str(caught.value) for word in ("a" * 16, "b" * 16, "prepared", REMEDY["vqvae"]))
    with pytest.raises(UserError, match="another codes"):
        manifest.require_parent("codes", "b" * 64, folder)
