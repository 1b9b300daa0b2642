"""The pictures of images and their reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from choices import few
from PIL import Image

from stage1_vqvae import reconstruct, train
from stage1_vqvae.model import load_vqvae
from tessera import paths
from tessera.images.examples import spread_over_classes
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared


@pytest.mark.parametrize("strides", [[4], [4, 2]])
def test_each_image_stands_above_each_level_alone_and_all(
    write_params: Callable, write_prepared: Callable, strides: list[int]
) -> None:
    write_prepared((3, 16, 24))
    write_params(
        {"stage1_vqvae.network.conv.strides": strides, "data.channels": 3, "data.height": 16, "data.width": 24}
    )
    assert train.main([]) == 0 and reconstruct.main([]) == 0
    with Image.open(reconstruct.IMAGES / "validation.png") as image:
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    model, split = load_vqvae(paths.VQVAE)[0], open_prepared(paths.PREPARED)["validation"]
    pixels = split.pixels(spread_over_classes(split, reconstruct.GRID_IMAGES))
    with torch.no_grad():
        codes = model.encode(to_float(pixels))
        whole = to_uint8(model.decode(codes))
        alone = [to_uint8(model.decode(codes, [level])) for level in range(len(strides))]
    versions = [pixels, *(alone if len(strides) > 1 else []), whole]
    factor = 2  # images are 24 pixels wide and are shown 48 pixels wide
    for row, version in enumerate(versions):
        top, left = 2 + row * (16 * factor + 2), 2 + 3 * (24 * factor + 2)
        shown = picture[:, top : top + 16 * factor : factor, left : left + 24 * factor : factor]
        assert torch.equal(shown, version[3]), row
    assert len(strides) == 1 or not torch.equal(alone[0], alone[1])


def test_a_level_that_does_not_count_says_the_same_for_every_image(
    write_params: Callable, write_prepared: Callable
) -> None:
    write_prepared((1, 8, 8))
    write_params({"stage1_vqvae.network.conv.strides": [2, 2]})
    assert train.main([]) == 0
    model, split = load_vqvae(paths.VQVAE)[0], open_prepared(paths.PREPARED)["train"]
    with torch.no_grad():
        codes = model.encode(to_float(split.pixels(slice(0, 6))))
        coarse = model.decode_parameters(codes, [0])
        others = [codes[0], codes[1].flip(0)]
        assert torch.allclose(coarse, model.decode_parameters(others, [0]), atol=1e-6)
        assert not torch.allclose(coarse, model.decode_parameters(codes))


@pytest.mark.parametrize("size", few([1, 2, 3], 1))
def test_each_picture_is_drawn_by_one_process(
    in_tmp: Path, write_params: Callable, write_prepared: Callable, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    write_prepared()
    write_params({"stage1_vqvae.training.steps": 3})
    assert train.main([]) == 0
    drawn = []
    monkeypatch.setattr("tessera.images.grids.save_grid", lambda picture, path: drawn.append(path.name))
    for rank in range(size):
        processes = SimpleNamespace(
            process_index=rank,
            num_processes=size,
            device=torch.device("cpu"),
            is_main_process=rank == 0,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr("tessera.launch.devices.accelerator", lambda *_, found=processes, **__: found)
        assert reconstruct.main([]) == 0
    assert sorted(drawn) == ["train.png", "validation.png"]
