"""The tiny run of sampling's tests, for the evaluation's."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# Tests are no package, so the fixture is loaded from its file.
spec = spec_from_file_location("sampling_fixtures", Path(__file__).parents[1] / "sampling" / "conftest.py")
fixtures = module_from_spec(spec)
spec.loader.exec_module(fixtures)
tiny_run = fixtures.tiny_run
finished_runs = fixtures.finished_runs
