"""Lookup-free quantization: a code is the signs of z's channels, and any point may be quantized.

Source: Yu et al. 2023, "Language Model Beats Diffusion" (MAGVIT-v2), section 3.2.
"""

from __future__ import annotations

from stage1_vqvae.quantizers.binary import BinaryQuantizer
from stage1_vqvae.quantizers.sections import BinaryParams


class Parameters(BinaryParams):
    """Parameters of `lfq`."""


class LFQ(BinaryQuantizer):
    """Codes are the corners of a cube."""

    spherical = False
