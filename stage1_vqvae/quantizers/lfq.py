"""Lookup-free quantization: a code is the signs of z's channels.

Source: Yu et al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), section 3.2.
"""

from __future__ import annotations

from typing import ClassVar

from stage1_vqvae.quantizers.binary import BinaryQuantizer
from stage1_vqvae.quantizers.sections import BinaryParams


class Parameters(BinaryParams):
    """The section `lfq` of params.yaml."""

    no_residual: ClassVar[str | None] = None
    approximates: ClassVar[bool] = False  # a code is ±1 however short z is


class LFQ(BinaryQuantizer):
    """Codes are the corners of a cube: ±1 in each channel."""

    spherical = False
    residual_scale = 0.5  # a target in [-2, 2] leaves a residual in [-1, 1]
