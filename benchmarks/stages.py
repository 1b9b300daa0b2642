"""The product's own stages, in the process of a benchmark."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import repository  # noqa: F401

from evaluation import evaluate
from evaluation import train_classifier as classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths
from tessera.cli.preset import leaves
from tessera.fingerprint import code
from tessera.parameters import Params
from tessera.project import ROOT, closure, files_of
from tessera.training.pictures import PAINTERS
from tessera.training.tracked import RUNS

BEFORE_PRIORS = {paths.PREPARED: prepare, paths.VQVAE: train_vqvae, paths.CODES: extract, paths.CLASSIFIER: classifier}
ALL = (*BEFORE_PRIORS.values(), train_prior, sample, evaluate)
NOTE = Path("before.json")  # the parameters of the stages before the prior, beside what they made


def run(stage: ModuleType, params: Params) -> None:
    """Runs a stage as its command does without arguments."""
    stage.run(params, nothing())


def hold(params: Params) -> None:
    """Keeps the current folder for these parameters of the stages before the prior, of which one run serves all priors.

    Raises:
        SystemExit: the folder holds results of other parameters, or results without a note of their parameters.
    """
    wanted = used_before(params)
    if not NOTE.exists():
        if made := [path for path in BEFORE_PRIORS if path.exists()]:
            raise SystemExit(f"{made[0].absolute()}: its parameters are not known; name another --folder")
        NOTE.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    made, asked = leaves(noted(Path())), leaves(wanted)
    if other := [path for path in sorted({*made, *asked}) if made.get(path, NOTE) != asked.get(path, NOTE)]:
        shown = "; ".join(f"{path}: {made.get(path, 'none')}, and now {asked.get(path, 'none')}" for path in other[:3])
        raise SystemExit(f"{Path.cwd()} holds other parameters: {shown}; name another --folder")


def used_before(params: Params) -> dict[str, Any]:
    """The parameters that change what the stages before the prior make, as JSON values."""
    sections = dict.fromkeys(name for stage in BEFORE_PRIORS.values() for name in stage.USES)
    return {name: getattr(params, name).values() for name in sections}


def noted(folder: Path) -> dict[str, Any] | None:
    """The parameters that a folder is held for; None if it is held for none."""
    file = folder / NOTE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def nothing() -> argparse.Namespace:
    """The arguments of a command for which none were given: those of `sample`, which has the most."""
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    return parser.parse_args([])


def import_code(params: Iterable[Params]) -> None:
    """Imports all code that the stages use with any of these parameters.

    A finished training belongs to the code that its process had imported. A benchmark that trains with one option after
    another would train anew where it was interrupted, if it had not imported all of them at the start.
    """
    files = {file for each in params for stage in ALL for file in code(stage.__name__, stage.USES, each)}
    by_name = [RUNS, *(painter.partition(":")[0] for painter in PAINTERS.values())]  # what the training loop imports so
    named = closure({file for name in by_name for file in files_of(name)})
    for file in sorted(files | {file.relative_to(ROOT).as_posix() for file in named}):
        import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
