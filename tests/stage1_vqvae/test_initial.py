"""A VQ-VAE whose training begins with the weights of a published one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stage1_vqvae import train
from stage1_vqvae.model import load_vqvae
from tessera import paths

Write = Callable[..., None]
SECTION = "stage1_vqvae.training"
OLD = Path("old vqvae")


@pytest.fixture
def published(in_tmp: Path, write_params: Write, write_prepared: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published VQ-VAE of 8x8 images, moved out of the way."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_prepared((1, 8, 8))
    write_params({"stage1_vqvae.quantizer.ema_decay": 0.9})
    assert train.main([]) == 0
    shutil.move(paths.VQVAE, OLD)
    return OLD


def test_training_begins_with_its_weights_and_codebook_and_names_it_as_a_parent(
    published: Path, write_params: Write, capsys: pytest.CaptureFixture
) -> None:
    # Neither the learning rate nor the codebook's decay moves anything, and the codebook is not started at the data.
    still = {f"{SECTION}.learning_rate": 1e-30, f"{SECTION}.steps": 1, f"{SECTION}.warmup_steps": 0}
    write_params({f"{SECTION}.initialise_from": str(OLD)} | still)
    write_params({"stage1_vqvae.quantizer.ema_decay": 0.999999})
    assert train.main([]) == 0
    (old, old_manifest), (new, manifest) = load_vqvae(OLD), load_vqvae(paths.VQVAE)
    for name, tensor in old.state_dict().items():
        if not name.startswith("likelihood"):  # its scale is fitted anew
            torch.testing.assert_close(new.state_dict()[name], tensor, rtol=0, atol=1e-4, msg=name)
    assert manifest.parents["initial"] == old_manifest.identity
    assert f"begins with the weights of {OLD}\n" in capsys.readouterr().err


def test_images_may_have_another_size_which_is_said(
    published: Path, write_params: Write, write_prepared: Write, capsys: pytest.CaptureFixture
) -> None:
    write_prepared((1, 8, 12))
    write_params({f"{SECTION}.initialise_from": str(OLD), "data.width": 12})
    assert train.main([]) == 0
    assert "on images of 8x8 where these have 8x12" in capsys.readouterr().err
    assert load_vqvae(paths.VQVAE)[0].layout.image_shape == (1, 8, 12)


@pytest.mark.parametrize("shared", [False, True])
def test_scales_may_have_other_grids_at_another_size(
    published: Path, write_params: Write, write_prepared: Write, capsys: pytest.CaptureFixture, shared: bool
) -> None:
    shutil.rmtree(OLD)
    scales, sharing = "stage1_vqvae.scales", {"stage1_vqvae.quantizer.shared_by_levels": shared}
    write_params({f"{scales}.sides": [1, 2, 4], f"{scales}.convolutions": 2} | sharing)
    assert train.main([]) == 0
    shutil.move(paths.VQVAE, OLD)
    write_prepared((1, 12, 12))
    changes = {f"{SECTION}.initialise_from": str(OLD), "data.height": 12, "data.width": 12}
    write_params({f"{scales}.sides": [1, 3, 6]} | changes)
    assert train.main([]) == 0
    said = ", on images of 8x8 where these have 12x12, on scales of 1x1, 2x2, 4x4 where these have 1x1, 3x3, 6x6\n"
    assert said in capsys.readouterr().err
    assert [level.height for level in load_vqvae(paths.VQVAE)[0].layout.levels] == [1, 3, 6]
    write_params({f"{scales}.sides": [1, 2, 3, 6]})
    assert train.main([]) == (0 if shared else 2)
    if not shared:
        assert "the shape of quantizers.3.codebook is none" in capsys.readouterr().err
    write_params({f"{scales}.convolutions": 4})  # the published model has 2
    assert train.main([]) == 2
    assert "the shape of network.convolutions.2.weight is none" in capsys.readouterr().err
    write_params({f"{scales}.strength": 0.25})
    assert train.main([]) == 2
    assert "has scales.strength 0.5, and this training 0.25" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage1_vqvae.network.conv.channels": 16}, "has network.conv.channels 8, and this training 16"),
        ({"stage1_vqvae.quantizer.name": "fsq"}, "has quantizer.name vq, and this training fsq"),
        (
            {"stage1_vqvae.quantizer.codebook_size": 16},
            "the shape of quantizers.0.codebook is [8, 4], expected [16, 4]",
        ),
        ({f"{SECTION}.initialise_from": "nowhere"}, "nowhere: no vqvae here"),
    ],
)
def test_another_model_is_refused_with_the_difference(
    published: Path, write_params: Write, capsys: pytest.CaptureFixture, changes: dict, said: str
) -> None:
    write_params({f"{SECTION}.initialise_from": str(OLD)} | changes)
    assert train.main([]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("error") == 1 and not paths.VQVAE.exists()
