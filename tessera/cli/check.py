"""Check the whole of a parameter file, its source of images, its trackers and the models that
trainings begin with: python -m tessera check [FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path

from stage0_images.places import check_places
from tessera import paths
from tessera.parameters import load
from tessera.training.checks import require_initial_folders
from tessera.training.tracked import require_trackers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tessera check", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=paths.PARAMS, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    params = load(arguments.file)
    check_places(params.data)
    require_trackers(params.runtime.trackers)
    require_initial_folders(params)
    print(f"{arguments.file}: every parameter is valid")
    return 0
