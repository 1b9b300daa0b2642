"""Binary spherical quantization: z is projected to the unit sphere, and a code is the signs of its channels.

Source: Zhao, Xiong and Krähenbühl 2024, "Image and Video Tokenization with Binary Spherical Quantization", section 4.
"""

from __future__ import annotations

from typing import ClassVar

from stage1_vqvae.quantizers.binary import BinaryQuantizer
from stage1_vqvae.quantizers.sections import BinaryParams


class Parameters(BinaryParams):
    """The section `bsq` of params.yaml."""

    no_residual: ClassVar[str | None] = (
        "the residual of a unit vector is not a unit vector; lfq has the same codes without the sphere"
    )


class BSQ(BinaryQuantizer):
    """Codes are the corners of a cube inscribed in the unit sphere: ±1/√bits in each channel."""

    spherical = True
