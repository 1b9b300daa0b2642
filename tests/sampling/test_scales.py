"""Codes of scales, whose grids do not divide one another, on their way through the pipeline."""

from __future__ import annotations

import pytest
import torch
from choices import few

from tessera import TwoStagePipeline, paths
from tessera.images.pixels import to_float
from tessera.images.prepared import open_prepared

GRIDS = [[1, 1], [2, 3], [4, 8]]


@pytest.mark.parametrize("prior", few(["next_scale", "pixelcnn", "transformer", "masked"], "next_scale"))
def test_scales_are_sampled_completed_and_measured(tiny_run, prior) -> None:
    tiny_run((1, 8, 16), strides=[2], sizes=[3, 5, 6], prior=prior, grids=GRIDS)
    pipeline = TwoStagePipeline.load("models", "cpu")
    assert [[level.height, level.width] for level in pipeline.layout.levels] == GRIDS
    pixels = open_prepared(paths.PREPARED)["test"].pixels(slice(None))
    settings = {"guidance_scale": [1.0, 2.0, 3.0], "temperature": [1.0, 0.9, 0.8], "top_k": [None, 4, 3]}
    images = pipeline.generate(6, seed=3, **settings)
    assert torch.allclose(pipeline.generate(6, seed=3, batch_size=4, **settings), images, atol=1e-4)
    known = torch.zeros(8, 16, dtype=torch.bool)
    known[:, :8] = True
    completed = pipeline.complete(to_float(pixels), known, seed=1)
    assert torch.equal(completed[..., known], to_float(pixels)[..., known])
    found = pipeline.log_likelihood(pixels, torch.arange(len(pixels)) % 3)
    assert found["rate_by_level"].shape == (len(pixels), 3)
    torch.testing.assert_close(found["rate_by_level"].sum(1), found["rate"])
