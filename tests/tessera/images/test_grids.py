"""Image grids that a person can look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from tessera.images.grids import GREY, PADDING, image_grid, save_grid, stacked_grid


def test_tiny_images_are_enlarged_by_whole_pixels():
    pixels = torch.tensor([[[[0, 255], [10, 20]]]] * 3, dtype=torch.uint8)
    picture = image_grid(pixels, 3)
    assert picture.shape == (3, 2 + 50, 2 + 3 * 50)
    assert picture[:, 2:50, 2:50].unique().tolist() == [0, 10, 20, 255]
    assert (picture[:, 2:26, 26:50] == 255).all()
    assert image_grid(torch.zeros(4, 3, 64, 80, dtype=torch.uint8), 2).shape == (3, 2 + 2 * 66, 2 + 2 * 82)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_that_of_torchvision(count: int, channels: int) -> None:
    images = torch.randint(256, (count, channels, 48, 50), dtype=torch.uint8)
    assert torch.equal(image_grid(images, 3), make_grid(images, nrow=3, padding=PADDING, pad_value=GREY))


def test_each_image_stands_above_its_other_versions():
    originals = torch.arange(11, dtype=torch.uint8).reshape(11, 1, 1, 1).expand(-1, 1, 48, 48)
    picture = stacked_grid([originals, originals + 100])
    assert picture.shape == (3, 2 + 4 * 50, 2 + 8 * 50)
    for i in range(11):
        row, column = 2 * (i // 8) * 50 + 10, (i % 8) * 50 + 10
        assert picture[0, row, column] == i and picture[0, row + 50, column] == i + 100


def test_the_same_picture_gives_the_same_bytes_without_metadata(tmp_path):
    picture = image_grid(torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8), 1)
    for name in ("a", "b"):
        save_grid(picture, tmp_path / "new" / f"{name}.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert not image.info and np.array_equal(np.array(image), picture.permute(1, 2, 0).numpy())
