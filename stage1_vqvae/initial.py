"""Begins the training of a VQ-VAE with the weights of a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stage1_vqvae.model import VQVAE
from tessera.artifacts.manifests import Manifest
from tessera.console import say
from tessera.training.initial import adapting, begin_with

WHERE = "stage1_vqvae.training.initialise_from"


def begin(model: VQVAE, folder: Path) -> Manifest:
    """Give a new VQ-VAE the weights and codebooks of a published one, and return the published one's manifest.

    The network's parameters, the names of quantizer and likelihood, and all shapes must agree. The images may have
    another size, where the network allows it, and come from another source. Scales may then have other grids. If each
    has a quantizer of its own, they must be as many. If they share one, they may be more or fewer, as long as both
    models have as many convolutions: the smaller of `convolutions` and the number of scales.

    Raises:
        UserError: the folder is missing or damaged, or the two models differ.
    """
    here = model.config
    agrees = {"network": here["network"]} | {part: {"name": here[part]["name"]} for part in ("quantizer", "likelihood")}
    if "scales" in here:
        agrees["scales"] = {"strength": here["scales"]["strength"]}
    there, _, manifest = begin_with(model, folder, "vqvae", WHERE, agrees)
    with adapting(folder, WHERE):
        new, old = (_sizes(config) for config in (here, there))
    other = [f", on {what} of {old[what]} where these have {size}" for what, size in new.items() if old[what] != size]
    say(f"begins with the weights of {folder}" + "".join(other))
    return manifest


def _sizes(config: dict[str, Any]) -> dict[str, str]:
    """The size of images, and of scales if there are any, as they are shown."""
    grids = [config["image_shape"][1:], *config.get("scales", {}).get("grids", [])]
    image, *scales = ("x".join(map(str, grid)) for grid in grids)
    return {"images": image} | ({"scales": ", ".join(scales)} if scales else {})
