"""Says whether what a stage reads was made with other parameters than params.yaml has now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera import paths
from tessera.artifacts.edited import tell_if_edited
from tessera.images.prepared import PreparedImages
from tessera.parameters import Params

if TYPE_CHECKING:
    from stage1_vqvae.model import VQVAE


def tell_of_edits(prepared: PreparedImages, model: VQVAE, params: Params) -> None:
    """Print a line each for the images and for the VQ-VAE, if `params` would make them in another way."""
    images, wanted = prepared.stats.preparation, params.data.preparation()
    tell_if_edited(paths.PREPARED, "prepared", {"data": images}, {"data": wanted})
    made, now = ({"scales": None} | config for config in (model.config, params.stage1_vqvae.model()))
    tell_if_edited(paths.VQVAE, "vqvae", {"stage1_vqvae": made}, {"stage1_vqvae": now})
