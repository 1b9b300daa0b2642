"""What an installed wheel holds, and that it draws from a copied folder of models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DRAW = """
from pathlib import Path
import tessera
from tessera import TwoStagePipeline
assert Path(tessera.__file__).is_relative_to(Path.cwd() / "installed"), tessera.__file__
print(tuple(TwoStagePipeline.load("models").generate(2, labels="each", batch_size=2).shape))
"""


@pytest.mark.slow
def test_a_wheel_holds_the_rooms_alone_and_draws(tiny_run: Callable[..., Path], repository: Path) -> None:
    folder = tiny_run() / "elsewhere"
    source = folder / "source"
    shutil.copytree(repository, source, ignore=shutil.ignore_patterns(".*", "results", "models", "data", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    installed = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    rooms = {"tessera", "stage0_images", "stage1_vqvae", "stage2_prior", "sampling", "evaluation"}
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"} == rooms
    shutil.copytree("models", folder / "models")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 1, 8, 8)"
