"""Begins the training of a prior with the weights of a published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import prior_config
from stage2_prior.priors.labels import LabelEmbedding
from tessera.artifacts.manifests import Manifest
from tessera.console import say
from tessera.training.initial import adapting, begin_with

WHERE = "stage2_prior.training.initialise_from"
FREE = "drop"  # in the names of arguments that may differ, since they change nothing in evaluation: dropout, attn_pdrop


def begin(prior: Prior, folder: Path, vqvae: str) -> Manifest:
    """Give a new prior the weights of a published one, and return the published one's manifest.

    The name, all arguments except dropout, the grids and the codebook sizes must agree. The classes may differ: a class
    gets the weights of the published class of the same name (of the same number, if names are not known). A new class
    gets those of the null label.

    Args:
        vqvae: the identity of the VQ-VAE whose codes the prior will be trained on.

    Raises:
        UserError: the folder is missing or damaged, or the two priors differ.
    """
    here = prior_config(prior)
    agrees = {
        "name": here["name"],
        "params": _structure(here["params"]),
        "layout": {"levels": here["layout"]["levels"]},
    }
    tables = frozenset(f"{name}.weight" for name, part in prior.named_modules() if isinstance(part, LabelEmbedding))
    there, tensors, manifest = begin_with(prior, folder, "prior", WHERE, agrees, tables)
    with adapting(folder, WHERE):
        old = [_old_class(i, here, there) for i in range(here["num_classes"])]
        rows = torch.tensor([there["num_classes"] if row is None else row for row in (*old, None)])
        prior.load_state_dict({name: tensors[name][rows] for name in tables}, strict=False)
    new = sum(row is None for row in old)
    other = "" if manifest.parents.get("vqvae") == vqvae else "; it was trained on the codes of another VQ-VAE"
    say(f"begins with the weights of {folder}" + f"; {new} of {len(old)} classes are new to it" * bool(new) + other)
    return manifest


def _structure(params: Any) -> Any:
    """A prior's arguments without those that may differ, at any depth."""
    if isinstance(params, list):
        return [_structure(value) for value in params]
    if not isinstance(params, dict):
        return params
    return {name: _structure(value) for name, value in params.items() if FREE not in name}


def _old_class(number: int, here: dict[str, Any], there: dict[str, Any]) -> int | None:
    """The old number of a class, or None for a new class."""
    names = there["class_names"]
    if names and here["class_names"]:
        name = here["class_names"][number]
        return names.index(name) if name in names else None
    return number if number < there["num_classes"] else None
