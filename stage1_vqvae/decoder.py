"""The published decoders: the likelihood's, which is part of the VQ-VAE, and the refined one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from stage1_vqvae.model import VQVAE, vqvae_from_file
from tessera.artifacts.files import json_text, write_text
from tessera.artifacts.manifests import Manifest
from tessera.artifacts.models import load_module, refuse_others, stand_in
from tessera.errors import UserError

LIKELIHOOD, REFINED = "likelihood", "refined"  # the values of sampling.decoder, and the folders below paths.DECODERS


def load_refined(folder: Path) -> tuple[VQVAE, Manifest]:
    """Loads a refined decoder from the files of its folder, such as models/decoders/refined.

    Returns:
        A VQ-VAE with the refined decoder and the same codes as the one it was made from, in evaluation mode on the CPU;
        and the manifest of the folder.

    Raises:
        UserError: the folder is missing or damaged, says that there is no such decoder, or holds none that this version
            can build.
    """
    model, manifest = load_module(folder, "decoder", _from_file)
    if not isinstance(model, VQVAE):
        reason = manifest.read_json("config.json")["reason"]
        raise UserError(f"{folder}: there is no refined decoder, since {reason}; choose the decoder {LIKELIHOOD}")
    return model, manifest


def load_decoder(folder: Path, decoder: str, vqvae: VQVAE, manifest: Manifest) -> tuple[VQVAE, Manifest | None]:
    """The model whose `decode` turns codes into images.

    Args:
        folder: the folder of all decoders, such as models/decoders.
        decoder: likelihood or refined.
        vqvae: the VQ-VAE whose codes are decoded, and its manifest.

    Returns:
        The VQ-VAE itself and None for the likelihood's decoder; otherwise the refined one and its manifest.

    Raises:
        UserError: there is no such decoder, see `load_refined`; or it was made from another VQ-VAE.
    """
    if decoder == LIKELIHOOD:
        return vqvae, None
    if decoder != REFINED:
        raise UserError(f"decoder: expected {LIKELIHOOD} or {REFINED}, got {decoder!r}")
    model, found = load_refined(folder / REFINED)
    found.require_parent("vqvae", manifest.identity, folder / REFINED)
    return model, found


def publish_likelihood(folder: Path) -> None:
    """Write the folder of the likelihood's decoder. Its one file never changes, and nor does what depends on it."""
    write_text(folder / "config.json", json_text({"decoder": "the VQ-VAE's own, in models/vqvae"}))


def _from_file(config: dict[str, Any]) -> nn.Module:
    """The model of a configuration from a file, or a stand-in. Raises ValueError for keys that none has."""
    refuse_others(config, ("available", "vqvae", "reason"), "config.json")
    return vqvae_from_file(config["vqvae"]) if config["available"] else stand_in(config)
