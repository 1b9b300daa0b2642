"""Nothing that the product reads is a pickle, whatever the file is called."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import written_parts

from stage0_images.parameters import DataParams
from stage0_images.pixels import decoding, read_image
from stage0_images.reading import BadImage, DiskFile
from tessera import project
from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import file_entry, manifest_text
from tessera.artifacts.models import load_model, save_model
from tessera.artifacts.publishing import publishing
from tessera.codes.layout import CodeLayout, Level
from tessera.codes.store import open_codes
from tessera.documents import read_json, read_yaml
from tessera.errors import UserError
from tessera.images.prepared import open_prepared
from tessera.images.samples import open_samples, sample_parts, write_description

LAYOUT = CodeLayout((1, 8, 8), (Level(2, 2, 1, 5),))
WORDS = ("pickle", "torch.load", "allow_pickle", "marshal", "shelve", "joblib")


def test_no_file_of_the_product_reads_a_pickle():
    for file in project.files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found = [word for word in WORDS if word in line]
            said = ('"' in line and line.strip().startswith(('"""', 'f"', '"'))) or "pickle is" in line
            assert not found or said, f"{file}:{number}: {line}"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def bombs(tmp_path) -> list[bytes]:
    """Pickles that leave a mark: plain, as an .npy file of objects, and with the beginning of a zip as torch has it."""
    bomb = Bomb(tmp_path / "mark")
    array = np.empty(1, object)
    array[0] = bomb
    np.save(tmp_path / "objects.npy", array, allow_pickle=True)
    torch_like = tmp_path / "torch.pt"
    import torch

    torch.save(bomb, torch_like)
    return [pickle.dumps(bomb), (tmp_path / "objects.npy").read_bytes(), torch_like.read_bytes()]


def write_codes(folder: Path) -> None:
    with publishing(folder, "codes", {"vqvae": "a" * 64, "prepared": "b" * 64}) as staging:
        splits = ("train", "validation", "test")
        tokens = {split: np.ones((1, 4, 4), np.int64) for split in splits}
        labels = {split: np.zeros(4, np.int64) for split in splits}
        written_parts.write_codes(staging, LAYOUT, ("cat", "dog"), tokens, labels, part_rows=8)


def write_sampled(folder: Path) -> None:
    with publishing(folder, "samples", {}) as staging:
        written_parts.write_parts(staging, sample_parts(["default"], 4, 8), np.zeros((4, 1, 8, 8), np.uint8))
        write_description(staging, ["default"], 4, (1, 8, 8), 2, 8, np.zeros(4, np.int64))


def write_model(folder: Path) -> None:
    import torch

    save_model(folder, "vqvae", {"a": 1}, {"weight": torch.ones(3)}, {})


def everything(folder: Path, kind: str) -> None:
    """Read all that a published folder holds."""
    if kind == "vqvae":
        load_model(folder, kind)
    elif kind == "codes":
        for split in open_codes(folder).splits.values():
            split.rows(np.arange(4), np.zeros(4, np.int64))
    else:
        reader = open_samples(folder) if kind == "samples" else open_prepared(folder).splits
        for split in reader.values():
            split.pixels(np.arange(len(split)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["prepared", "codes", "vqvae", "samples"])
def test_a_pickle_under_every_name_of_a_published_folder_is_refused(
    in_tmp, bombs, write_prepared, kind, signed
) -> None:
    """`signed`: the manifest fits the pickle, as whoever publishes a folder may make it."""
    make = {"codes": write_codes, "vqvae": write_model, "samples": write_sampled}
    folder = in_tmp / "data" / "prepared" if kind == "prepared" else in_tmp / kind
    write_prepared() if kind == "prepared" else make[kind](folder)
    everything(folder, kind)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        for bomb in bombs:
            bad = shutil.copytree(folder, in_tmp / "bad")
            (bad / name).write_bytes(bomb)
            if signed and name != "manifest.json":
                entries = {other: file_entry(bad / other) for other in names if other != "manifest.json"}
                (bad / "manifest.json").write_text(manifest_text(kind, {}, entries))
            with pytest.raises(UserError) as caught:
                everything(bad, kind)
            assert "\n" not in str(caught.value)
            shutil.rmtree(bad)
    assert not (in_tmp / "mark").exists()


def test_a_pickle_as_json_yaml_or_image_is_refused(in_tmp, bombs, params):
    data: DataParams = params().data
    for bomb in bombs:
        (in_tmp / "file").write_bytes(bomb)
        for reader in (read_json, read_yaml):
            with pytest.raises(UserError):
                reader(in_tmp / "file")
        with decoding(), pytest.raises(BadImage):
            read_image(DiskFile(in_tmp / "file"), data)
    (in_tmp / "file").write_text(json_text({"py/object": "os.system"}) + "!!python/object/apply:os.system [ls]")
    with pytest.raises(UserError):
        read_yaml(in_tmp / "file")
    assert not (in_tmp / "mark").exists()
