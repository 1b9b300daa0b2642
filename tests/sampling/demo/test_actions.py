"""What the demo does, without its page: the same as the commands and the pipeline do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling import sample
from sampling.demo import actions, codes
from sampling.demo.models import open_models
from sampling.pipeline import TwoStagePipeline
from sampling.settings import Settings
from tessera.errors import UserError
from tessera.images.pixels import to_float, to_uint8
from tessera.parameters import load

SETTINGS = asdict(Settings()) | {"seed": 3}


@pytest.mark.parametrize(("label", "options", "images"), [(1, ["--class", "class 1"], 5), (actions.EVERY, [], 15)])
def test_samples_are_the_picture_that_the_command_writes(tiny_run, label, options, images):
    tiny_run()
    assert sample.main([*options, "--count", "5", "--seed", "3", "--top-k", "3", "--output", "command.png"]) == 0
    pipeline, beginning = open_models("models", None, load(Path("params.yaml")).sampling)
    settings = beginning.settings | {"seed": 3, "top_k": 3, "batch_size": beginning.batch_size}
    found = actions.sample(pipeline, label, 5, beginning.columns, **settings)
    assert np.array_equal(found.picture, np.asarray(Image.open("command.png")))
    assert found.images.shape == (images, 1, 8, 8)
    turns = to_uint8(pipeline.generate(images, "each" if images == 15 else 1, **SETTINGS | {"top_k": 3})).numpy()
    start = found.names.index("class 1")
    assert found.names[start : start + 5] == ["class 1"] * 5
    assert np.array_equal(found.images[start : start + 5], turns[1::3] if images == 15 else turns)


def test_without_classes_there_are_samples_too(tiny_run):
    tiny_run(classes=0)
    pipeline = TwoStagePipeline.load("models", "cpu")
    found = actions.sample(pipeline, None, 4, 2, **SETTINGS)
    assert np.array_equal(found.images, to_uint8(pipeline.generate(4, **SETTINGS)).numpy()) and found.names == []


def test_a_completion_keeps_what_is_not_painted_and_draws_the_rest(pipeline, pixels):
    picture, known = pixels[0].numpy(), np.ones((8, 8), dtype=bool)
    known[4:, 2:] = False
    found = actions.complete(pipeline, picture, known, 2, 3, 8, **SETTINGS)
    images = to_float(pixels[:1]).expand(3, -1, -1, -1)
    expected = to_uint8(pipeline.complete(images, torch.from_numpy(known), 2, **SETTINGS)).numpy()
    assert np.array_equal(found.images, expected)
    assert (found.images[:, 0, known] == picture[0, known]).all()
    with pytest.raises(UserError, match="nothing is painted"):
        actions.complete(pipeline, picture, np.ones((8, 8), dtype=bool), 2, 3, 8, **SETTINGS)


def test_every_class_is_no_class_in_particular_for_a_single_picture(pipeline, pixels):
    picture, known = pixels[0].numpy(), np.zeros((8, 8), dtype=bool)
    every, none = (
        actions.complete(pipeline, picture, known, label, 2, 8, **SETTINGS) for label in (actions.EVERY, None)
    )
    assert np.array_equal(every.images, none.images)
    pipeline.prior.null_label = False
    with pytest.raises(UserError, match="needs a class"):
        actions.likelihood(pipeline, picture, actions.EVERY)


def test_a_pixel_is_unknown_where_the_brush_touched_any_part_of_it():
    layer = np.zeros((80, 160, 4), dtype=np.uint8)
    layer[9, 0] = layer[40, 159] = 255
    known = actions.painted([layer, np.zeros((8, 16, 4), dtype=np.uint8)], (8, 16))
    assert np.argwhere(~known).tolist() == [[0, 0], [4, 15]]
    assert actions.painted([], (2, 3)).all()


def test_a_likelihood_is_that_of_the_pipeline(pipeline, pixels):
    expected = pipeline.log_likelihood(pixels[:1], 1)
    rows = actions.likelihood(pipeline, pixels[0].numpy(), 1)
    assert [bits for _, bits in rows] == [expected[name].item() for name in ("distortion", "rate", "total")]
    assert "given the class" in rows[1][0]
    assert "given the class" not in actions.likelihood(pipeline, pixels[0].numpy(), actions.EVERY)[1][0]


def test_rates_of_levels_and_their_error_are_told(tiny_run):
    tiny_run((1, 8, 16), strides=[2, 2], sizes=4, prior="chain")
    pipeline = TwoStagePipeline.load("models", "cpu")
    rows = actions.likelihood(pipeline, np.zeros((1, 8, 16), dtype=np.uint8), None)
    assert len(rows) == 4 and "level 2, given coarser codes" in rows[2][0] and "an estimate" in rows[3][0]


@pytest.mark.parametrize("count", [0, 2.5, None, "3", actions.MOST + 1, float("nan"), float("inf")])
def test_a_number_of_images_that_is_none_is_refused(count):
    with pytest.raises(UserError, match="number of images: expected a whole number from 1 to"):
        actions.at_most(count, 1)


def test_own_codes_give_the_reconstruction_and_another_code_another_picture(pipeline, pixels):
    layout, picture = pipeline.layout, pixels[0].numpy()
    tokens = actions.reconstruct(pipeline, picture)
    expected = to_uint8(pipeline.reconstruct(to_float(pixels[:1])))[0].numpy()
    assert np.array_equal(actions.decoded(pipeline, tokens), expected)
    place = codes.Place(0, 1, 0)
    other = (codes.code_at(layout, tokens, place) + 1) % layout.levels[0].codebook_size
    changed = codes.with_code(layout, tokens, place, other)
    assert codes.code_at(layout, changed, place) == other and codes.changes(tokens, changed) == 1
    assert not np.array_equal(actions.decoded(pipeline, changed), expected)
