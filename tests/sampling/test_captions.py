"""Names beside the rows of a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sampling.captions import PAPER, beside, drawable
from sampling.labels import Classes
from sampling.pictures import classes_in_rows, file_name, require_size, square, to_pil
from tessera.errors import UserError
from tessera.images.grids import GREY, image_grid


def ink(strip: torch.Tensor) -> np.ndarray:
    """Where a margin has letters, bool (height, width)."""
    return (strip != PAPER).any(0).numpy()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16), (3, 64, 64), (1, 300, 20)])
def test_each_name_stands_beside_its_own_row_and_the_images_stay(shape):
    pixels = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    grid = image_grid(pixels, 2)
    cell = (grid.shape[1] - 2) // 3 - 2
    picture = beside(grid, ["first", None, "third"], cell)
    margin = picture.shape[2] - grid.shape[2]
    assert torch.equal(picture[:, :, margin:], grid) and picture.dtype == torch.uint8
    rows = ink(picture[:, :, :margin])
    for number, named in enumerate([True, False, True]):
        part = rows[2 + number * (cell + 2) : 2 + number * (cell + 2) + cell]
        assert part.any() == named
        if named:
            middle = np.flatnonzero(part.any(1)).mean() / len(part)
            assert 0.3 < middle < 0.7
            assert np.ptp(np.flatnonzero(part.any(1))) >= min(9, cell - 4)  # high enough to read
    assert not rows[:, 0].any() and not rows[:, -1].any()  # no letter is cut


def test_a_long_name_is_cut_with_dots():
    grid = image_grid(torch.zeros(1, 1, 48, 48, dtype=torch.uint8).expand(2, -1, -1, -1), 1)
    margin = beside(grid, ["a very long name of a class, with all its synonyms", "short"], 48).shape[2] - grid.shape[2]
    assert margin < 14 * 14
    assert beside(grid, ["short", None], 48).shape[2] < margin + grid.shape[2]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ankle boot", "ankle boot"),
        ("café", "cafe"),
        ("7", "7"),
        ("猫", "#3"),
        ("😀 cat", "#3 cat"),
        ("Łódź", "#3 odz"),
        ("two\nlines", "#3 twolines"),
        (" ", "#3"),
    ],
)
def test_what_the_font_lacks_is_told_by_the_classs_number(name, shown):
    assert drawable(name, 3) == shown
    beside(image_grid(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 1), [drawable(name, 3), None], 48)


def test_a_class_may_take_several_rows_and_is_named_at_the_first():
    pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 48, 48)
    picture = classes_in_rows(pixels, [1, 0], 3, Classes(2, ("a", "b"), (0, 1)))
    margin = picture.shape[2] - (2 + 3 * 50)
    found = [[int(picture[0, 20 + 50 * r, margin + 20 + 50 * c]) for c in range(3)] for r in range(4)]
    assert found == [[0, 1, 2], [3, 4, GREY], [5, 6, 7], [8, 9, GREY]]
    rows = ink(picture[:, :, :margin])
    assert [rows[50 * r : 50 * r + 50].any() for r in range(4)] == [True, False, True, False]


def test_names_of_files_are_ones_that_any_system_takes():
    assert file_name(12, "ankle boot") == "00012-ankle_boot.png" and file_name(3, None) == "00003.png"
    assert file_name(0, "../a\\b:c\0") == "00000-___a_b_c_.png"
    assert file_name(0, "猫") == "00000-猫.png" and len(file_name(0, "猫" * 300).encode()) < 255
    assert [square(n) for n in (1, 2, 4, 5, 9, 10)] == [1, 2, 2, 3, 3, 4]


def test_a_picture_too_large_to_open_is_refused():
    require_size("--count", 40_000, (1, 8, 8))
    with pytest.raises(UserError, match="--count: a picture has room for 40000 images of this size, not for 100000"):
        require_size("--count", 100_000, (1, 8, 8))


def test_pillow_images_have_the_pixels():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    for image, expected in zip(to_pil(pixels), pixels, strict=True):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected.permute(1, 2, 0))
    (grey,) = to_pil(pixels[:1, :1])
    assert grey.mode == "L" and np.array_equal(np.asarray(grey), pixels[0, 0])
