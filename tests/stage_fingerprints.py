"""What each stage's fingerprint has of parameters and code, and parameters with one value changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tessera.cli.fingerprint import stages as modules
from tessera.cli.preset import leaves
from tessera.errors import UserError
from tessera.fingerprint import fingerprint
from tessera.parameters import Params, validate
from tessera.parameters.parts import options

REPOSITORY = Path(__file__).parent.parent
CHOICES = (
    "stage1_vqvae.network",
    "stage1_vqvae.quantizer",
    "stage1_vqvae.likelihood",
    "stage2_prior",
    "classifier",
    "evaluation.features",
)
PACKAGES = {
    "stage1_vqvae.network": "stage1_vqvae.networks",
    "stage1_vqvae.quantizer": "stage1_vqvae.quantizers",
    "stage1_vqvae.likelihood": "stage1_vqvae.likelihoods",
    "stage2_prior": "stage2_prior.priors",
    "classifier": "tessera.features.classifiers",
    "evaluation.features": "tessera.features.networks",
}
MODULES = modules(REPOSITORY / "dvc.yaml")  # each stage's entry point
STAGES = [
    "prepare",
    "train_vqvae",
    "refine_decoder",
    "reconstruct",
    "extract_codes",
    "train_prior",
    "sample",
    "train_classifier",
    "evaluate",
    "report",
]


def used_by(params: Params) -> dict[str, dict[str, Any]]:
    """The fingerprint of every stage."""
    return {name: fingerprint(module, import_module(module).USES, params) for name, module in MODULES.items()}


def leaves_that_matter(raw: dict[str, Any]) -> dict[str, Any]:
    """Every leaf but `data.watch`, which is a path that DVC itself watches, and names of choices, tested apart."""
    return {path: value for path, value in leaves(raw).items() if not path.endswith(".name") and value != {}}


def changed_values(path: str, value: Any) -> Iterator[Any]:
    """Other values of a leaf, of which the first valid one is taken."""
    special = {
        "stage1_vqvae.quantizer.residual.quantizer.name": ["fsq"],
        "stage1_vqvae.quantizer.grouped.quantizer.name": ["fsq"],
        "stage2_prior.chain.links": [[{"name": "counts"}]],
        "stage2_prior.transformer.extra": [{"n_inner": 64}],
        "stage1_vqvae.quantizer.start": ["normal"],
        "stage1_vqvae.quantizer.gradient_estimator": ["rotation"],
        "stage1_vqvae.quantizer.simvq.gradient_estimator": ["diveq"],
        "stage1_vqvae.quantizer.vq.distance": ["cosine"],
        "stage1_vqvae.quantizer.fsq.activation": ["sigmoid"],
        "stage1_vqvae.quantizer.vq.codebook_update": ["gradient"],
        "data.fit": ["stretch"],
        "data.grey_range": [[0, 4095]],
        "sampling.guidance_schedule": ["linear"],
        "sampling.decoder": ["refined"],
        "stage1_vqvae.scales.sides": [[1, 2, 4]],
        "sampling.order": ["random"],
        "runtime.trackers": [["tensorboard"]],
        "stage2_prior.any_order.annealing": [[0.5, 0.75]],
        "stage1_vqvae.objective.adversarial.discriminator.patch.norm": ["batch"],
    }
    yield from special.get(path, ())
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (v for v in (value * 2, value + 2, value / 2, value + 1, 1, 0.5) if v != value)
    elif isinstance(value, list):
        yield from ([2 * item for item in value], [1, *value], [*value, *value], [item - 1 for item in value])
        yield [item / 2 for item in value]
    elif value is None:
        yield from (1, 0.5, "other", 1000)
    elif path.endswith(".name"):
        choice = path.removesuffix(".name")
        yield from (name for name in options(PACKAGES[choice]) if name != value)
    else:
        yield from ("exponential", "bf16", "other", "llama")


def with_change(raw: dict[str, Any], path: str, value: Any) -> Params | None:
    """The parameters with one leaf changed, or None if no change of it is valid."""
    tree = json.loads(json.dumps(raw))
    *sections, key = path.split(".")
    node = tree
    for section in sections:
        node = node[section]
    for other in changed_values(path, value):
        node[key] = other
        try:
            return validate(tree)
        except UserError:
            continue
    return None
