"""A model that is read while another process publishes it: whole, of one generation, and never called damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.artifacts import publishing
from tessera.artifacts.models import load_model, save_model
from tessera.artifacts.settled import settled
from tessera.errors import UserError

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


def publisher(folder: Path, how: str, times: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PUBLISH, str(folder), how, str(times)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


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
            for _ in range(1000):
                config, tensors, _ = load_model(folder, "vqvae")
                assert tensors["weight"].eq(config["generation"]).all()
                seen.add(config["generation"])
            assert publishing_process.poll() is None
        finally:
            publishing_process.kill()
    assert len(seen) > 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_two_publishers_at_once_leave_one_whole_folder(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "vqvae"
    processes = [publisher(folder, how, 30) for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    config, tensors, _ = load_model(folder, "vqvae")
    assert config["generation"] == 29 and tensors["weight"].eq(29).all()
    publishing.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vqvae"]
