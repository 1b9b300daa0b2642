"""The tiny run of sampling's tests, for the evaluation's, and the same with all figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from evaluation import evaluate
from evaluation import train_classifier as classifier
from sampling import sample
from stage1_vqvae import reconstruct

# Tests are no package, so the fixture is loaded from its file.
spec = spec_from_file_location("sampling_fixtures", Path(__file__).parents[1] / "sampling" / "conftest.py")
fixtures = module_from_spec(spec)
spec.loader.exec_module(fixtures)
tiny_run = fixtures.tiny_run
finished_runs = fixtures.finished_runs


@pytest.fixture(scope="module")
def evaluated_runs() -> dict[str, Path]:
    """Copies of runs that were evaluated, by their arguments."""
    return {}


@pytest.fixture
def evaluated(
    tiny_run: Callable[..., Path], in_tmp: Path, evaluated_runs: dict[str, Path], tmp_path_factory: Any
) -> Callable[..., Path]:
    """`evaluated(shape=..., ...)`: a tiny run with all that the report reads; arguments as for `tiny_run`."""

    def make(**arguments: Any) -> Path:
        key = json.dumps(arguments, default=str)
        if key in evaluated_runs:
            shutil.copytree(evaluated_runs[key], in_tmp, dirs_exist_ok=True)
        else:
            tiny_run(**arguments)
            for stage in (reconstruct, classifier, sample, evaluate):
                assert stage.main([]) == 0, stage.__name__
            evaluated_runs[key] = shutil.copytree(in_tmp, tmp_path_factory.mktemp("run") / "evaluated")
        return in_tmp

    return make
