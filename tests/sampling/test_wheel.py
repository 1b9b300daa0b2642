"""What an installed wheel holds, and that it loads a saved pipeline: same images, same likelihood."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.images.prepared import open_prepared

DRAW = """
import sys
from pathlib import Path
sys.modules["datasets"] = sys.modules["dvc"] = None  # importing either fails
import tessera
from tessera import TwoStagePipeline
assert Path(tessera.__file__).is_relative_to(Path.cwd().parent / "installed"), tessera.__file__
import torch
from safetensors.torch import load_file
expected = load_file("../expected.safetensors")
pipeline = TwoStagePipeline.from_pretrained("../saved", device="cpu")
torch.testing.assert_close(pipeline.generate(6, labels="each", seed=3), expected["images"], rtol=0, atol=1e-5)
bits = pipeline.log_likelihood(expected["pixels"], labels=[0, 1])["total"]
torch.testing.assert_close(bits, expected["bits"], rtol=1e-6, atol=0)
saved = pipeline.save_pretrained("again")
print(sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*.safetensors")))
"""


@pytest.mark.slow
def test_a_wheel_holds_the_rooms_alone_and_loads_what_was_saved(
    tiny_run: Callable[..., Path], repository: Path
) -> None:
    """From an empty folder, without params.yaml, repository, `datasets` and DVC."""
    folder = tiny_run(prior="transformer") / "elsewhere"
    source = folder / "source"
    shutil.copytree(repository, source, ignore=shutil.ignore_patterns(".*", "results", "models", "data", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    installed = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    rooms = {"tessera", "stage0_images", "stage1_vqvae", "stage2_prior", "sampling", "evaluation"}
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"} == rooms
    pipeline = TwoStagePipeline.load("models", "cpu")
    pipeline.save_pretrained(folder / "saved")
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(0, 2))
    expected = {"images": pipeline.generate(6, labels="each", seed=3), "pixels": pixels}
    expected["bits"] = pipeline.log_likelihood(pixels, labels=[0, 1])["total"]
    save_file(expected, folder / "expected.safetensors")
    nowhere = folder / "empty"
    nowhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, cwd=nowhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['prior/model.safetensors', 'vqvae/model.safetensors']"
