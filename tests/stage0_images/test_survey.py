"""What a source of images is like, before it is prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage0_images.sources import open_source
from stage0_images.survey import Survey, look
from tessera.errors import UserError


@pytest.fixture
def survey(in_tmp: Path, params: Callable) -> Callable[[], Survey]:
    """`survey()`: what the folder `images` holds."""

    def make() -> Survey:
        data = params({"data.source": "images", "data.watch": "images"}).data
        (in_tmp / "cache").mkdir(exist_ok=True)
        return look(open_source(data, in_tmp / "cache"), data)

    return make


def save(name: str, mode: str, size: tuple[int, int], colour: object) -> None:
    path = Path("images") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_grey_images_of_one_size_are_told_with_their_classes(survey) -> None:
    for number in range(20):
        save(f"{'cat' if number % 2 else 'dog'}/{number}.png", "RGB", (28, 28), (number, number, number))
    found = survey()
    assert found.grey and found.classes == ("cat", "dog") and set(found.sides) == {28} and found.side == 28
    assert sum(found.images.values()) == 20 and found.given == ("train",)
    assert found.transparent == found.refused == 0


def test_colours_sides_and_aspects_are_those_of_the_images(survey) -> None:
    for number in range(30):
        save(f"{number}.png", "RGB", (64, 40 + number), (number, 0, 0) if number == 7 else (9, 9, 9))
    found = survey()
    assert found.classes is None and (found.sides[0], found.sides[-1]) == (40, 64)
    assert found.side == found.sides[len(found.sides) // 10]
    assert found.aspects[0] == pytest.approx(64 / 69) and found.aspects[-1] == pytest.approx(64 / 40)


def test_one_coloured_image_is_enough_and_hidden_colours_do_not_count(survey) -> None:
    for number in range(12):
        save(f"{number}.png", "RGBA", (8, 8), (255, 0, 0, 0))
    found = survey()
    assert found.grey and found.transparent == 1.0
    for number in range(12):
        save(f"{number}.png", "RGBA", (8, 8), (255, 0, 0, 200))
    assert not survey().grey


@pytest.mark.parametrize(
    ("drawings", "background"),
    [
        ([0, 0, 200], "white"),
        ([255, 255, 90], "black"),
        ([0, 255, 60], "grey"),
        ([0, 128, 128], "white"),
    ],
)
def test_transparent_drawings_get_a_background_on_which_they_can_be_seen(survey, drawings, background) -> None:
    for number in range(12):
        pixels = np.full((9, 9, 4), drawings[number % 3], np.uint8)
        pixels[..., 3] = np.eye(9) * 255
        path = Path(f"images/{number}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    assert survey().background == background


def test_a_drawing_in_a_hundred_does_not_change_the_background(survey) -> None:
    for number in range(120):
        save(f"{number:03}.png", "RGBA", (9, 9), (255, 255, 255, 100) if number == 50 else (9, 9, 9, 100))
    assert survey().background == "white"


def test_images_that_cannot_be_opened_are_left_out(survey) -> None:
    for number in range(12):
        save(f"{number}.png", "L", (8, 8), number)
    for number in range(4):
        Path(f"images/broken{number}.png").write_bytes(b"no image")
    found = survey()
    assert 0 < found.refused < 1 and set(found.sides) == {8}


def test_a_source_without_any_image_that_opens_is_refused(survey) -> None:
    save("0.png", "L", (8, 8), 0)
    for number in range(12):
        Path(f"images/{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of \d+ images could be opened"):
        survey()


def test_digits_are_grey_images_of_8_pixels(in_tmp: Path, params: Callable) -> None:
    Path("watched").touch()
    data = params({"data.watch": "watched"}).data
    found = look(open_source(data, in_tmp), data)
    assert found.grey and found.side == 8 and len(found.classes) == 10
    assert np.ptp(found.sides) == 0 and set(found.aspects) == {1.0}
