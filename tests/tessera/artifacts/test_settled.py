"""A folder that is read while another process publishes it: whole, of one generation, and never called damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_runs import HANGS, wait_for

from tessera.artifacts import publishing
from tessera.artifacts.models import load_model, save_model
from tessera.artifacts.settled import settled
from tessera.codes.store import open_codes
from tessera.errors import UserError
from tessera.images.prepared import open_prepared

PUBLISH = """
import sys
from pathlib import Path
import torch
from tessera.artifacts import publishing
from tessera.artifacts.models import save_model
if sys.argv[2] == "renames":
    publishing.exchange = lambda first, second: False
for generation in range(int(sys.argv[3])):
    value = float(generation)
    save_model(Path(sys.argv[1]), "vqvae", {"generation": value}, {"weight": torch.full((50_000,), value)}, {})
"""


# Every value of a generation tells which one it is.
PUBLISH_DATA = """
import sys
from pathlib import Path
import numpy as np
from tessera.artifacts import publishing
from tessera.artifacts.arrays import ArrayWriter
from tessera.artifacts.files import json_text
from tessera.codes.layout import CodeLayout, Level
from tessera.codes.store import code_parts, write_description
from tessera.images.prepared import Stats
folder, kind = Path(sys.argv[1]), sys.argv[4]
if sys.argv[2] == "renames":
    publishing.exchange = lambda first, second: False

def write(path, shape, dtype, value):
    with ArrayWriter(path, shape[1:], dtype) as writer:
        writer.append(np.full(shape, value))

for generation in range(int(sys.argv[3])):
    names = tuple(f"{generation} {number}" for number in range(5))
    with publishing.publishing(folder, kind, {}) as staging:
        if kind == "prepared":
            stats = Stats((1, 8, 8), names, {"train": 300, "test": 20}, float(generation), 0.3)
            for name, count in stats.images.items():
                write(staging / name / "images.npy", (count, 1, 8, 8), np.uint8, generation % 251)
                write(staging / name / "labels.npy", (count,), np.int64, generation % 5)
            (staging / "stats.json").write_text(json_text(stats.to_json()))
        else:
            layout, splits = CodeLayout((1, 8, 8), (Level(4, 4, 1, 251),)), {"train": {"images": 300, "passes": 2}}
            for part in code_parts(splits, 128):
                write(staging / part.name, (part.rows.stop - part.rows.start, 16), np.uint8, generation % 251)
            write_description(staging, layout, names, splits, {"train": np.full(300, generation % 5)}, 128)
"""


def publisher(folder: Path, how: str, times: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PUBLISH, str(folder), how, str(times)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def read_prepared(folder: Path) -> int:
    """The generation of the prepared images, of which every value must be."""
    found = open_prepared(folder)
    generation = int(found.stats.mean)
    assert found.stats.classes[0] == f"{generation} 0"
    for split in found.splits.values():
        assert split.pixels(slice(None)).eq(generation % 251).all()
        assert split.label_tensor(slice(None)).eq(generation % 5).all()
    return generation


def read_codes(folder: Path) -> int | None:
    """The generation of the codes. None: parts that are gone when they are read are said to have changed."""
    found = open_codes(folder)
    generation, rows = int(found.classes[0].split()[0]), np.arange(300)
    assert found["train"].label_tensor(rows).eq(generation % 5).all()
    try:
        assert found["train"].rows(rows, rows % 2).eq(generation % 251).all()
    except UserError as error:
        assert "changed while it was being read; run this stage again" in str(error)
        return None
    return generation


def test_a_folder_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "vqvae"
    save_model(folder, "vqvae", {"generation": 1}, {"weight": torch.ones(1)}, {})
    opened = []

    @settled
    def load(folder: Path) -> str:
        opened.append(folder)
        if len(opened) == 1:
            save_model(folder, "vqvae", {"generation": 2}, {"weight": torch.ones(1)}, {})
            raise UserError("its contents differ from the manifest's SHA-256")
        return "whole"

    assert load(folder) == "whole" and len(opened) == 2


def test_what_is_damaged_and_stays_so_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "vqvae"
    save_model(folder, "vqvae", {}, {"weight": torch.ones(1)}, {})
    (folder / "config.json").write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder, "vqvae")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_thousand_loads_beside_a_publisher_are_whole(tmp_path: Path, how: str) -> None:
    folder, seen = tmp_path / "vqvae", set()
    save_model(folder, "vqvae", {"generation": -1.0}, {"weight": torch.full((50_000,), -1.0)}, {})
    with publisher(folder, how, 1_000_000) as publishing_process:
        try:
            while load_model(folder, "vqvae")[0]["generation"] < 0:
                assert publishing_process.poll() is None
            for number in range(10_000):
                config, tensors, _ = load_model(folder, "vqvae")
                assert tensors["weight"].eq(config["generation"]).all()
                seen.add(config["generation"])
                if number >= 1000 and len(seen) > 10:
                    break
            assert publishing_process.poll() is None
        finally:
            publishing_process.kill()
    assert len(seen) > 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
@pytest.mark.parametrize(("kind", "read"), [("prepared", read_prepared), ("codes", read_codes)])
def test_data_that_is_opened_beside_a_publisher_is_whole(tmp_path: Path, kind: str, read: Callable, how: str) -> None:
    folder, seen = tmp_path / kind, set()
    command = [sys.executable, "-c", PUBLISH_DATA, str(folder), how, "1000000", kind]
    with subprocess.Popen(command) as publishing_process:
        try:
            wait_for((folder / "manifest.json").exists, "nothing was published")
            for number in range(5000):
                seen.add(read(folder))
                if number >= 500 and len(seen - {None}) > 10:
                    break
            assert publishing_process.poll() is None
        finally:
            publishing_process.kill()
    assert len(seen - {None}) > 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_two_publishers_at_once_leave_one_whole_folder(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "vqvae"
    processes = [publisher(folder, how, 30) for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=HANGS)[1] == "" and process.returncode == 0
    config, tensors, _ = load_model(folder, "vqvae")
    assert config["generation"] == 29 and tensors["weight"].eq(29).all()
    publishing.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae"]
