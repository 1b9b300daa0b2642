"""Quantizers by name. To add one: a file with a class of vq.py's contract, its parameters, and a line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from stage1_vqvae.quantizers.vq import VectorQuantizer

QUANTIZERS = {"vq": VectorQuantizer}


def build_quantizers(config: dict[str, Any], levels: int) -> nn.ModuleList:
    """One quantizer a level, coarsest first; `codebook_size` may be one number or one a level."""
    name = config["name"]
    values = dict(config[name])
    sizes = values.pop("codebook_size")
    sizes = sizes if isinstance(sizes, list | tuple) else [sizes] * levels
    return nn.ModuleList(QUANTIZERS[name](codebook_size=size, **values) for size in sizes)
