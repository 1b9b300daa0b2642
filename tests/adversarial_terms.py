"""The configuration of a small adversarial term, and images to train with it."""

from __future__ import annotations

import numpy as np

from tessera.images.prepared import ImageSplit

SHAPE = (1, 8, 8)
PATCH = {"name": "patch", "patch": {"channels": 4, "layers": 1, "norm": "group"}}
ADVERSARIAL = {
    "weight": 0.7,
    "adaptive": True,
    "start_step": 2,
    "ramp_steps": 3,
    "regulariser": {"name": "none", "weight": 0.1, "decay": 0.9},
    "optimizer": {"learning_rate_factor": 0.5, "betas": [0.5, 0.9]},
    "discriminator": PATCH,
}


def pictures(count: int = 24) -> ImageSplit:
    return ImageSplit(np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8), None)
