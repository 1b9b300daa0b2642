"""Begins the training of a VQ-VAE with the weights of a published one."""

from __future__ import annotations

from pathlib import Path

from stage1_vqvae.model import VQVAE
from tessera.artifacts.manifests import Manifest
from tessera.console import say
from tessera.training.initial import adapting, begin_with

WHERE = "stage1_vqvae.training.initialise_from"


def begin(model: VQVAE, folder: Path) -> Manifest:
    """Give a new VQ-VAE the weights and codebooks of a published one, and return the published one's manifest.

    The network's parameters, the names of quantizer and likelihood, and all shapes must agree. The images may have
    another size, where the network allows it and there are no scales, and come from another source.

    Raises:
        UserError: the folder is missing or damaged, or the two models differ.
    """
    here = model.config
    agrees = {"network": here["network"]} | {part: {"name": here[part]["name"]} for part in ("quantizer", "likelihood")}
    if "scales" in here:
        agrees["scales"] = {name: here["scales"][name] for name in ("grids", "strength")}
    there, _, manifest = begin_with(model, folder, "vqvae", WHERE, agrees)
    with adapting(folder, WHERE):
        new, old = ("x".join(map(str, config["image_shape"][1:])) for config in (here, there))
    size = f", on images of {old} where these have {new}" if old != new else ""
    say(f"begins with the weights of {folder}{size}")
    return manifest
