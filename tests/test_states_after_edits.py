"""A parameter that is edited between a kill and the next start begins a new training: each one that a training uses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from stage_fingerprints import MODULES, leaves_that_matter, with_change

from stage1_vqvae import extract
from stage1_vqvae import train as train_vqvae
from tessera.errors import UserError
from tessera.parameters import Params, validate
from tessera.training.checkpoint import fingerprint

pytestmark = pytest.mark.slow

TRAININGS = ("train_vqvae", "refine_decoder", "train_prior", "train_classifier")
SCALES = {"stage1_vqvae.scales.sides": [1, 2, 4], "stage2_prior.name": "next_scale"}
RESIDUAL = {"stage1_vqvae.quantizer.name": "residual", "stage2_prior.name": "any_order"}
TERM = {"weight": 0.1, "adaptive": False, "regulariser": {"name": "lecam"}}
DISCRIMINATORS = {
    "stage1_vqvae.objective.adversarial.weight": 0.5,
    "stage1_vqvae.objective.adversarial.regulariser.name": "lecam",
    "stage1_vqvae.quantizer.name": "grouped",
    "refine_decoder.name": "objective",
    "refine_decoder.objective": {"perceptual": {"weight": 0.0}, "adversarial": TERM},
    "stage2_prior.name": "masked",
}
CHAIN = {"stage1_vqvae.likelihood.name": "mixture_of_logistics", "stage2_prior.name": "chain"}
# What names files that are not here, so that the stage refuses it.
REFUSED = ("stage1_vqvae.objective.perceptual.weight", "refine_decoder.objective.perceptual.weight")


class Begun(Exception):
    """A training has begun; the message is the name of its folder of states."""


def folder_of(stage: str, params: Params) -> str | None:
    """The name of the folder of states of a stage's training, or None if it trains nothing."""
    try:
        import_module(MODULES[stage]).run(params, argparse.Namespace())
    except Begun as begun:
        return str(begun)
    return None


@pytest.mark.parametrize("changes", [{}, SCALES, RESIDUAL, DISCRIMINATORS, CHAIN], ids=lambda c: "-".join(c) or "plain")
def test_each_parameter_that_a_training_uses_names_another_folder_of_states(
    in_tmp: Path, write_params: Callable, write_prepared: Callable, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    write_prepared()
    write_params(changes)
    for stage in (train_vqvae, extract):
        assert stage.main([]) == 0

    def begin(
        stage: str, task: Any, training: Any, runtime: Any, accelerator: Any, values: dict, artifact: Any
    ) -> None:
        raise Begun(fingerprint(stage, values, artifact.parents))

    monkeypatch.setattr("tessera.training.loop.train", begin)
    raw = json.loads(Path("params.yaml").read_text(encoding="utf-8"))

    def used(params: Params) -> dict[str, Any]:
        return {name: [params.used(path) for path in import_module(MODULES[name]).USES] for name in TRAININGS}

    first = validate(raw)
    before, uses, tried = {name: folder_of(name, first) for name in TRAININGS}, used(first), 0
    for leaf, value in leaves_that_matter(raw).items():
        edited = with_change(raw, leaf, value)
        if edited is None:
            continue
        for name in (name for name, values in used(edited).items() if values != uses[name]):
            tried += 1
            try:
                assert folder_of(name, edited) != before[name], f"{name} goes on after an edit of {leaf}"
            except UserError:
                assert leaf in REFUSED or leaf.endswith("initialise_from"), leaf
    assert tried > 80
