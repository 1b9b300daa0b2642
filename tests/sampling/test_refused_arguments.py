"""Settings, labels, images and masks that a pipeline cannot use are refused in one line."""

from __future__ import annotations

import math

import pytest
import torch

from tessera.errors import UserError
from tessera.images.pixels import to_float, to_uint8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected"),
        ({"temperature": math.nan}, "temperature: expected"),
        ({"temperature": None}, "temperature: expected"),
        ({"temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"top_p": "x"}, "top_p: expected a number, or None for no filter, got 'x'"),
        ({"guidance_scale": math.inf}, "guidance_scale: expected"),
        ({"guidance_scale": -1.0}, "guidance_scale: expected"),
        ({"top_k": 9}, "top_k: expected a whole number from 1 to 8"),
        ({"top_k": 0}, "top_k: expected"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"top_p": math.nan}, "top_p: expected"),
        ({"min_p": 1.0}, "min_p: expected"),
        ({"min_p": -0.5}, "min_p: expected"),
        ({"topk": 3}, "topk: no such sampling setting"),
        ({"temperature": [1.0, 0.9]}, "temperature: 2 values for 1 levels"),
        ({"top_p": [1.5]}, "top_p: expected"),
        ({"guidance_schedule": "rising"}, "guidance_schedule: expected constant or linear, got 'rising'"),
        ({"order": "raster"}, "order: expected layout or random or parallel, got 'raster'"),
        ({"decoding_steps": 0}, "decoding_steps: expected a whole number of at least 1, got 0"),
        ({"decoding_steps": 2.5}, "decoding_steps: expected a whole number"),
        ({"choice_temperature": math.inf}, "choice_temperature: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": 1.0}, "seed: expected a whole number of at least 0, got 1.0"),
        ({"seed": True}, "seed: expected"),
        ({"seed": None}, "seed: expected"),
        ({"start": 0.0}, "start: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"batch_size": 2.0}, "batch_size: expected"),
        ({"labels": [0, 1, 4]}, "class 4 does not exist; choose from 0 to 2, or 3 for no class in particular"),
        ({"labels": [0, -1, 1]}, "class -1 does not exist"),
        ({"labels": [0, 1]}, "labels: expected 3 whole numbers"),
        ({"labels": [0.0, 1.0, 2.0]}, "labels: expected 3 whole numbers"),
    ],
)
def test_a_meaningless_setting_is_refused_in_one_line(pipeline, settings, message):
    with pytest.raises(UserError, match=message) as error:
        pipeline.generate(3, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, x: p.reconstruct(to_uint8(x)),
        lambda p, x: p.reconstruct(x[..., :4]),
        lambda p, x: p.log_likelihood(x),
        lambda p, x: p.complete(x, torch.ones(8, 7, dtype=torch.bool)),
        lambda p, x: p.complete(x, torch.ones(8, 8)),
    ],
)
def test_images_and_masks_of_another_kind_are_refused(pipeline, call):
    with pytest.raises(UserError, match="expected"):
        call(pipeline, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("numbers", "message"), [({"seed": -1}, "seed: expected"), ({"batch_size": 0}, "batch_size: expected")]
)
def test_numbers_below_their_least_are_refused(pipeline, pixels, numbers, message):
    with pytest.raises(UserError, match=message):
        pipeline.complete(to_float(pixels), torch.ones(8, 8, dtype=torch.bool), **numbers)
    with pytest.raises(UserError, match=message):
        pipeline.generate(2, **numbers)


def test_batch_sizes_of_what_is_not_drawn_are_checked(pipeline, pixels):
    with pytest.raises(UserError, match="batch_size: expected a whole number of at least 1, got 0"):
        pipeline.reconstruct(to_float(pixels), batch_size=0)
    with pytest.raises(UserError, match="batch_size: expected a whole number of at least 1, got None"):
        pipeline.log_likelihood(pixels, batch_size=None)


@pytest.mark.parametrize("bad", [255.0, -1.1, math.nan])
def test_images_out_of_range_are_refused(pipeline, pixels, bad):
    images = to_float(pixels)
    images[3, 0, 2, 2] = bad
    for use in (pipeline.reconstruct, lambda images: pipeline.complete(images, torch.ones(8, 8, dtype=torch.bool))):
        with pytest.raises(UserError, match=r"images: expected values in \[-1, 1\]"):
            use(images)


@pytest.mark.parametrize(
    "labels", [[None, 1], {1, 2}, [[1], [2, 3]], [10**30, 1], [True, False], [0.0, 1.0], True, 1.0]
)
def test_what_is_no_label_is_one_line(pipeline, labels):
    with pytest.raises(UserError, match="labels: expected 2 whole numbers") as caught:
        pipeline.check_labels(labels, 2)
    assert "\n" not in str(caught.value)
