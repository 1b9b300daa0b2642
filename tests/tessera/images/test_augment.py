"""Mirrored and shifted copies of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tessera.images.augment import augment, shift


def images(count: int, height: int = 5, width: int = 7) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (0, 2), (-1, 1), (-2, -2), (9, -9)])
def test_shift_moves_the_image_and_repeats_its_edge(down: int, right: int) -> None:
    pixels = images(2)
    found = shift(pixels, torch.tensor([down, down]), torch.tensor([right, right]))
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (9, 9), (9, 9)), mode="edge")
    expected = padded[:, :, 9 - down : 14 - down, 9 - right : 16 - right]
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), expected)


def test_each_image_has_a_shift_of_its_own() -> None:
    pixels = images(3)
    down, right = torch.tensor([0, 1, -1]), torch.tensor([2, 0, -1])
    found = shift(pixels, down, right)
    for i in range(3):
        assert torch.equal(found[i : i + 1], shift(pixels[i : i + 1], down[i : i + 1], right[i : i + 1]))


def test_augment_draws_every_shift_and_mirrors_half() -> None:
    pixels = images(1, 6, 6).repeat(3000, 1, 1, 1)
    found = augment(pixels, True, 1, torch.Generator().manual_seed(0), 3000)
    seen: dict[bytes, int] = {}
    for image in found:
        key = image.numpy().tobytes()
        seen[key] = seen.get(key, 0) + 1
    one = pixels[:1]
    expected = {
        shift(source, torch.tensor([down]), torch.tensor([right]))[0].numpy().tobytes()
        for source in (one, one.flip(-1))
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    assert set(seen) == expected and len(expected) == 18
    assert min(seen.values()) > 3000 / 18 * 0.7


def test_augment_is_a_function_of_its_generator() -> None:
    pixels = images(8)
    first, second = (augment(pixels, True, 2, torch.Generator().manual_seed(5), 8) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(pixels, True, 2, torch.Generator().manual_seed(6), 8))


def test_augment_switched_off_changes_nothing() -> None:
    pixels = images(4)
    assert torch.equal(augment(pixels, False, 0, torch.Generator(), 4), pixels)


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 8), slice(8, 8)])
def test_some_rows_of_a_batch_are_augmented_as_in_the_whole_batch(rows: slice) -> None:
    pixels = images(8)
    whole = augment(pixels, True, 2, torch.Generator().manual_seed(5), 8)
    part = augment(pixels[rows], True, 2, torch.Generator().manual_seed(5), 8, rows)
    assert torch.equal(part, whole[rows])
