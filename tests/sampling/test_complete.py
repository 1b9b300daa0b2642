"""Completing an image from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import train_classifier as classifier
from sampling import complete
from sampling.complete import read_given
from sampling.pipeline import TwoStagePipeline
from tessera import paths
from tessera.features.classifiers.base import predict
from tessera.features.classifiers.build import load_classifier
from tessera.images.pixels import to_float, to_uint8
from tessera.images.prepared import open_prepared


@pytest.fixture
def files(tiny_run):
    """An image of the test split, and a mask whose upper half is white."""
    tiny_run()
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(0, 1)).numpy()[0, 0]
    Image.fromarray(pixels).save("image.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask.repeat(2, axis=1)).save("wide.png")
    Image.fromarray(mask * 0).save("black.png")
    Image.fromarray(mask // 255).save("ones.png")
    return pixels


def test_completions_keep_the_given_pixels_and_differ_in_the_others(files):
    command = ["image.png", "--mask", "mask.png", "--count", "5", "--class", "1", "--output", "out.png"]
    assert complete.main(command) == 0
    picture, size = np.asarray(Image.open("out.png"))[..., 0], 50  # 48 pixels an image and 2 between: common/grids.py
    images = [picture[r : r + 48 : 6, c : c + 48 : 6] for r in (2, 2 + size) for c in (2, 2 + size, 2 + 2 * size)]
    given, *completed = images
    assert (given[:4] == files[:4]).all() and (given[4:] == 128).all()
    for image in completed:
        assert (image[:4] == files[:4]).all()
    assert len({image.tobytes() for image in completed}) > 1
    assert not paths.SAMPLES.exists()


def test_a_class_by_name_and_values_on_the_command_line_are_used(files, monkeypatch):
    asked, whole = [], TwoStagePipeline.complete
    monkeypatch.setattr(TwoStagePipeline, "complete", lambda *a, **k: asked.append((a[3], k)) or whole(*a, **k))
    Path("models").rename("elsewhere")
    words = ["--class", "class 2", "--temperature", "0.5", "--seed", "9", "--models", "elsewhere", "--count", "2"]
    assert complete.main(["image.png", "--mask", "mask.png", *words]) == 0
    ((labels, settings),) = asked
    assert labels == [2, 2] and settings["temperature"] == 0.5 and settings["seed"] == 9
    assert settings["guidance_scale"] == 2.0  # as params.yaml has it


@pytest.mark.parametrize("kind", ["jpeg", "transparent"])
def test_a_mask_is_known_where_it_is_about_white_and_opaque(files, kind):
    white = np.zeros((64, 64), dtype=np.uint8)
    white[:32] = 255
    if kind == "jpeg":
        Image.fromarray(white).save("mask.jpg", quality=60)
    else:
        Image.merge("LA", (Image.new("L", (64, 64), 255), Image.fromarray(white))).save("mask.jpg", "PNG")
    Image.fromarray(white).save("image.png")
    _, known = read_given(
        Path("image.png"), Path("mask.jpg"), TwoStagePipeline.load(paths.MODELS).vqvae.config["preparation"]
    )
    assert known[:3].all() and not known[5:].any()  # but for the edge


def test_an_image_has_the_grey_range_of_the_models_images_and_a_mask_its_own(in_tmp):
    """A model from before there was a range has none; the fixtures' model is one."""
    ramp = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save("image.png")
    Image.fromarray(np.where(ramp > 2000, 65535, 0).astype(np.uint16)).save("mask.png")
    plain = {"height": 8, "width": 8, "channels": 1, "fit": "crop", "background": [0, 0, 0], "max_pixels": 100}
    for preparation, white in ((plain, 65535), (plain | {"grey_range": [0, 4095]}, 4095)):
        image, known = read_given(Path("image.png"), Path("mask.png"), preparation)
        assert np.array_equal(image[0], np.rint(ramp / white * 255))
        assert np.array_equal(known, ramp > 2000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image.png", "--mask", "mask.png", "--count", "0"], "--count: expected a number from 1 to 1000000000, got 0"),
        (["image.png", "--mask", "wide.png"], "wide.png: 16x8 pixels, but image.png has 8x8"),
        (["none.png", "--mask", "mask.png"], "none.png: unreadable file"),
        (["image.png", "--mask", "mask.png", "--class", "7"], "--class: no class is called '7'"),
        (
            ["image.png", "--mask", "mask.png", "--count", str(10**21)],
            "--count: expected a number from 1 to 1000000000",
        ),
        (["image.png", "--mask", "mask.png", "--count", "1000000"], "--count: a picture has room for"),
        (["image.png", "--mask", "black.png"], "black.png: no pixel is white (250 of 255 or more)"),
        (["image.png", "--mask", "ones.png"], "the brightest is 1; multiply its values by 255"),
        (["image.png", "--mask", "mask.png", "--output", "x.jpg"], "--output: x.jpg does not end in .png"),
        (["image.png", "--mask", "mask.png", "--output", "."], "--output: . is a folder"),
        (["image.png", "--mask", "mask.png", "--top-p", "0"], "--top-p: input should be greater than 0"),
    ],
)
def test_what_cannot_be_completed_is_one_line(files, capsys, arguments, message):
    assert complete.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("given", ["left", "lower"])
def test_the_benchmark_of_completions_gives_a_half_and_nothing_else(tiny_run, repository, monkeypatch, given):
    tiny_run((1, 8, 16), prior="pixelcnn")
    assert classifier.main([]) == 0
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import completion

    pipeline, asked = TwoStagePipeline.load(paths.MODELS), []
    whole = pipeline.complete
    monkeypatch.setattr(pipeline, "complete", lambda *a, **k: asked.append((a, k)) or whole(*a, **k))
    judge, _ = load_classifier(paths.CLASSIFIER)
    found, picture = completion.measure(pipeline, judge, 15, given, temperature=0.5)
    test = open_prepared(paths.PREPARED)["test"]
    pixels, labels = test.pixels(slice(0, 15)), test.label_tensor(slice(0, 15))
    known = torch.zeros(8, 16, dtype=torch.bool)
    known[(slice(None), slice(8)) if given == "left" else (slice(4, 8), slice(None))] = True
    (((images, mask), settings),) = asked
    assert torch.equal(images, to_float(pixels)) and torch.equal(mask, known) and "labels" not in settings
    completed = to_uint8(whole(images, known, seed=1, temperature=0.5))
    kinds = {"whole": pixels, "blank": pixels.masked_fill(~known, 128), "completed": completed}
    for kind, shown in kinds.items():
        assert found[kind] == pytest.approx((predict(judge, shown) == labels).float().mean().item()), kind
    assert found["images"] == 15 and picture.ndim == 3


def test_the_parts_that_the_benchmark_gives_are_halves_and_a_quarter_in_the_centre(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import completion

    parts = {given: completion.known_part(given, 8, 12) for given in completion.GIVEN}
    assert {given: int(part.sum()) for given, part in parts.items()} == dict.fromkeys(parts, 48) | {"centre": 24}
    assert (parts["left"] ^ parts["right"]).all() and (parts["upper"] ^ parts["lower"]).all()
    assert parts["centre"][2:6, 3:9].all() and parts["lower"][4:].all()


def test_the_benchmark_of_orders_has_a_row_for_each(tiny_run, repository, monkeypatch):
    tiny_run((1, 8, 16), prior="any_order")
    assert classifier.main([]) == 0
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import orders

    pipeline, (judge, _) = TwoStagePipeline.load(paths.MODELS), load_classifier(paths.CLASSIFIER)
    real = open_prepared(paths.PREPARED)["validation"].pixels(slice(None))
    rows = [orders.measure(pipeline, judge, real, 6, "lower", way) for way in orders.ways([2])]
    assert [row["order"] for row in rows] == ["layout", "random", "parallel"] and rows[2]["decoding_steps"] == 2
    assert all(0 <= row["completed"] <= 1 and row["distance"] > 0 for row in rows)
