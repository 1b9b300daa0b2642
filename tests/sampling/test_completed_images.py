"""TwoStagePipeline.complete: known pixels and cells stay, and what is unknown is not looked at."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from sampling.generate import known_tokens
from sampling.pipeline import TwoStagePipeline
from tessera.codes.layout import CodeLayout, Level
from tessera.images.pixels import to_float


def test_completion_keeps_known_pixels_and_known_cells(pipeline, pixels):
    images = to_float(pixels)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True  # the upper two of the four cells
    mask[4, 0] = True  # a known pixel in a cell that is not known
    found = pipeline.complete(images, mask, seed=1)
    assert torch.equal(found[..., mask], images[..., mask])
    other = pipeline.complete(images, mask, seed=2)
    assert not torch.equal(found, other)
    hidden = torch.where(mask, images, torch.rand_like(images))
    assert torch.equal(pipeline.complete(hidden, mask, seed=1), found)  # what is unknown is not looked at
    batched = mask.expand(len(images), 1, 8, 8)
    assert torch.allclose(pipeline.complete(images, batched, seed=1, batch_size=3), found, atol=1e-5)


def test_only_wholly_known_cells_are_given(tiny_run):
    tiny_run((3, 8, 12), classes=0, strides=[2, 2], sizes=[5, 9])  # grids 2 x 3 and 4 x 6
    pipeline = TwoStagePipeline.load()
    known = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    known[..., :4, :6] = True
    coarse, fine = pipeline.layout.unflatten(known_tokens(pipeline.layout, known))
    assert coarse[0, ..., 0].tolist() == [[True, False, False], [False, False, False]]
    assert fine[0, ..., 0].tolist() == [[c < 3 and r < 2 for c in range(6)] for r in range(4)]


def test_a_code_of_a_scale_is_given_only_if_every_feature_that_it_averages_is_known():
    layout = CodeLayout((3, 32, 32), tuple(Level(side, side, 1, 8) for side in (1, 2, 3, 4, 6, 8)))
    for edge in range(33):
        known = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        known[..., :edge] = True
        # The network's features, one for 4x4 pixels: not a number where a pixel is unknown.
        features = torch.where(known.unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2).all(-1), 1.0, torch.nan)
        for level, given in zip(layout.levels, layout.unflatten(known_tokens(layout, known)), strict=True):
            means = adaptive_avg_pool2d(features, (level.height, level.width))
            assert torch.equal(given[..., 0], means[:, 0].isfinite()), (edge, level.width)


def test_a_whole_mask_is_the_image_and_an_empty_one_is_a_sample(pipeline, pixels):
    images = to_float(pixels[:3])
    assert torch.equal(pipeline.complete(images, torch.ones(8, 8, dtype=torch.bool)), images)
    free = pipeline.complete(images, torch.zeros(8, 8, dtype=torch.bool), [0, 1, 2], seed=5)
    assert torch.allclose(free, pipeline.generate(3, "each", seed=5), atol=1e-5)


@pytest.mark.parametrize("hole", [255.0, math.nan])
def test_what_stands_where_an_image_is_unknown_is_not_looked_at(pipeline, pixels, hole):
    images, known = to_float(pixels[:3]), torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True
    completed = pipeline.complete(images, known)
    assert torch.equal(pipeline.complete(images.masked_fill(~known, hole), known), completed)
