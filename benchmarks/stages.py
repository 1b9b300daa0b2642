"""The product's own stages, in the process of a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

import repository  # noqa: F401

from evaluation import evaluate
from evaluation import train_classifier as classifier
from sampling import sample
from stage0_images import prepare
from stage1_vqvae import extract
from stage1_vqvae import train as train_vqvae
from stage2_prior import train as train_prior
from tessera import paths
from tessera.fingerprint import code
from tessera.parameters import Params
from tessera.project import ROOT, closure, files_of
from tessera.training.pictures import PAINTERS

BEFORE_PRIORS = {paths.PREPARED: prepare, paths.VQVAE: train_vqvae, paths.CODES: extract, paths.CLASSIFIER: classifier}
ALL = (*BEFORE_PRIORS.values(), train_prior, sample, evaluate)


def run(stage: ModuleType, params: Params) -> None:
    """Runs a stage as its command does without arguments."""
    stage.run(params, nothing())


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
    painters = closure({file for painter in PAINTERS.values() for file in files_of(painter.partition(":")[0])})
    for file in sorted(files | {file.relative_to(ROOT).as_posix() for file in painters}):
        import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
