"""Training the VQ-VAE in process: what it publishes, resuming, and refusals."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_vqvae import task as task_module
from stage1_vqvae import train
from stage1_vqvae.model import VQVAE, load_vqvae
from stage1_vqvae.task import VQVAETask
from tessera import paths
from tessera.artifacts.manifests import read_manifest
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared

pytestmark = pytest.mark.usefixtures("on_the_cpu")
Write = Callable[..., None]
RESULTS = paths.RESULTS / "train_vqvae"


def published() -> dict[str, bytes]:
    """Every published byte of the stage."""
    files = [p for folder in (paths.VQVAE, RESULTS) for p in sorted(folder.rglob("*.*")) if p.suffix != ".png"]
    return {p.as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("shape", "strides", "likelihood"),
    [((1, 8, 8), [2], "gaussian"), ((3, 8, 16), [4, 2], "discretized_logistic")],
)
def test_training_publishes_a_model_curves_and_figures(
    write_params: Write, write_prepared: Write, shape: tuple[int, int, int], strides: list[int], likelihood: str
) -> None:
    write_prepared(shape, classes=0)
    network, conv = "stage1_vqvae.network", "stage1_vqvae.network.conv.strides"
    write_params({conv: strides, "stage1_vqvae.likelihood.name": likelihood, f"{network}.name": "conv"} | sides(shape))
    assert train.main([]) == 0
    model, manifest = load_vqvae(paths.VQVAE)
    assert model.layout.image_shape == shape and len(model.layout.levels) == len(strides)
    assert manifest.parents == {"prepared": read_manifest(paths.PREPARED, "prepared").identity}
    figures = json.loads((RESULTS / "metrics.json").read_text())["validation"]
    assert figures["bits_per_dim_distortion"] == pytest.approx(bits_per_dim(model), rel=1e-6)
    assert {"nmse", "distortion", "step"} <= figures.keys()
    assert (RESULTS / "train.csv").read_text().startswith("step,loss,distortion,quantizer_loss,perplexity")
    assert (RESULTS / "validation.csv").read_text().splitlines()[1].startswith("5,")


def sides(shape: tuple[int, int, int]) -> dict[str, int]:
    return {"data.channels": shape[0], "data.height": shape[1], "data.width": shape[2]}


def bits_per_dim(model: VQVAE) -> float:
    pixels = open_prepared(paths.PREPARED)["validation"].pixels(slice(None))
    with torch.no_grad():
        parameters = model.decode_parameters(model.encode(to_float(pixels)))
    return model.likelihood.log_prob(parameters, pixels).mean().item() / -np.log(2)


def test_the_same_run_writes_the_same_bytes(write_params: Write, write_prepared: Write, tmp_path: Path) -> None:
    write_prepared()
    write_params()
    assert train.main([]) == 0
    first = published()
    for path in sorted(tmp_path.glob(".state/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert train.main([]) == 0
    assert published() == first


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stage1_vqvae.training.weight_ema_decay": 0.9},
        pytest.param({"stage1_vqvae.training.channels_last": True}, marks=pytest.mark.slow),
        {"stage1_vqvae.training.channels_last": True, "stage1_vqvae.training.precision": "bf16"},
        pytest.param(
            {"stage1_vqvae.quantizer.vq.codebook_update": "gradient", "stage1_vqvae.training.weight_decay": 0.1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_five_steps_an_interruption_and_five_more_equal_ten(
    write_params: Write, write_prepared: Write, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    write_prepared()
    write_params(changes | {"stage1_vqvae.quantizer.vq.revival_threshold": 0.3})
    assert train.main([]) == 0
    whole = published()
    Path(".state").rename("state_of_the_whole_run")
    original = VQVAETask.update

    def interrupted(self: VQVAETask, step: int) -> dict:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(task_module.VQVAETask, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            train.main([])
    assert stop.value.code == 130
    assert train.main([]) == 0
    assert published() == whole


def states() -> set[str]:
    return {path.name for path in Path(".state/train_vqvae").iterdir()}


def test_changed_parameters_or_images_never_go_on_from_old_weights(write_params: Write, write_prepared: Write) -> None:
    write_prepared()
    write_params()
    assert train.main([]) == 0
    seen = [states()]
    for changes in (
        {"stage1_vqvae.training.learning_rate": 1e-3},
        {"stage1_vqvae.quantizer.vq.commitment_cost": 0.5},
        {"stage1_vqvae.augmentation.shift": 0},
    ):
        write_params(changes)
        assert train.main([]) == 0
        seen.append(states())
    write_prepared(seed=1)
    assert train.main([]) == 0
    seen.append(states())
    assert [len(names) for names in seen] == [1, 2, 3, 4, 5]


def test_runtime_and_options_not_chosen_go_on_with_the_same_run(write_params: Write, write_prepared: Write) -> None:
    write_prepared()
    write_params()
    assert train.main([]) == 0
    first = published()
    write_params({"runtime.save_every": 7, "stage1_vqvae.likelihood.discretized_logistic.min_log_scale": -5.0})
    assert train.main([]) == 0
    assert len(states()) == 1 and published() == first  # it found itself finished
    Path(".state").rename("the first run's")
    assert train.main([]) == 0
    assert published() == first  # and would have come to the same end


def test_images_at_a_time_reach_neither_weights_nor_figures(write_params: Write, write_prepared: Write) -> None:
    write_prepared()
    write_params({"stage1_vqvae.training.weight_ema_decay": 0.9})
    found = []
    for batch_size in (16, 5):
        write_params({"runtime.batch_size": batch_size})
        assert train.main([]) == 0
        found.append(published())
        Path(".state").rename(f"state {batch_size}")
    assert found[0] == found[1]


def test_a_second_run_of_the_same_is_refused(
    write_params: Write, write_prepared: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_prepared()
    write_params()
    codes: list[int] = []
    original = VQVAETask.initialise

    def run_again(self: VQVAETask) -> None:
        codes.append(train.main([]))
        original(self)

    monkeypatch.setattr(task_module.VQVAETask, "initialise", run_again)
    assert train.main([]) == 0
    assert codes == [75]
    assert f"process {os.getpid()} is running stage1_vqvae.train in this folder" in capsys.readouterr().err


def test_missing_images_are_one_clear_line(write_params: Write, capsys: pytest.CaptureFixture) -> None:
    write_params()
    assert train.main([]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: data/prepared: no prepared here (no manifest.json); "
        "if its stage is running, wait for its end; otherwise make it anew with `python -m stage0_images.prepare` or "
        "`dvc repro`\n"
    )
    assert not paths.VQVAE.exists() and not Path(".state/train_vqvae").exists()


def test_help_loads_nothing_heavy(repository: Path) -> None:
    import subprocess

    code = (
        "import sys\nfrom stage1_vqvae import train, extract\nfrom stage2_prior import train as prior\n"
        "for module in (train, extract, prior):\n"
        "    try:\n        module.main(['--help'])\n    except SystemExit as stop:\n        assert stop.code == 0\n"
        "assert not {'torch', 'datasets', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, stdout=subprocess.DEVNULL)
