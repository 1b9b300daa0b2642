"""Quantizers by name. To add one: a file with a class of the contract (docs/architecture.md), its parameters in
common/params/quantizers.py, and a line here."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from stage1_vqvae.quantizers.binary import BinaryQuantizer
from stage1_vqvae.quantizers.fsq import FSQ
from stage1_vqvae.quantizers.grouped import GroupedQuantizer
from stage1_vqvae.quantizers.gumbel import GumbelQuantizer
from stage1_vqvae.quantizers.ibq import IBQ
from stage1_vqvae.quantizers.residual import ResidualQuantizer
from stage1_vqvae.quantizers.simvq import SimVQ
from stage1_vqvae.quantizers.soft_em import SoftEM
from stage1_vqvae.quantizers.vq import VectorQuantizer

QUANTIZERS = {
    "vq": VectorQuantizer,
    "soft_em": SoftEM,
    "gumbel": GumbelQuantizer,
    "fsq": FSQ,
    "lfq": partial(BinaryQuantizer, spherical=False),
    "bsq": partial(BinaryQuantizer, spherical=True),
    "simvq": SimVQ,
    "ibq": IBQ,
}
WRAPPERS = {"residual": ResidualQuantizer, "grouped": GroupedQuantizer}  # around the quantizer that they name


def _build(config: dict[str, Any], level: int, **given: Any) -> nn.Module:
    name, values = config["name"], dict(config[config["name"]]) | given
    if name in WRAPPERS:
        inner = values.pop("quantizer")
        more = {"symmetric": True} if (name, inner["name"]) == ("residual", "fsq") else {}
        return WRAPPERS[name](lambda: _build(inner, level, **more), **values)
    if isinstance(values.get("codebook_size"), list | tuple):
        values["codebook_size"] = values["codebook_size"][level]
    return QUANTIZERS[name](**values)


def build_quantizers(config: dict[str, Any], levels: int) -> nn.ModuleList:
    """One quantizer a level, coarsest first; a `codebook_size` may be one number or one a level."""
    return nn.ModuleList(_build(config, level) for level in range(levels))
