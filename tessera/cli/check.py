"""Check a whole parameter file before anything runs: python -m tessera check [FILE].

It also checks the source of images, the trackers, the models that trainings begin with, batch sizes and the rows of
train.csv. `--params FILE` means the same as FILE, as for the stages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stage0_images.places import check_places
from tessera import paths
from tessera.parameters import load
from tessera.training.checks import require_initial_folders, require_trainings
from tessera.training.tracked import require_trackers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help=f"default: {paths.PARAMS}")
    parser.add_argument("--params", type=Path, default=paths.PARAMS, metavar="FILE", help="the same")
    arguments = parser.parse_args(argv)
    file = arguments.file or arguments.params
    params = load(file)
    check_places(params.data)
    require_trackers(params.runtime.trackers)
    require_initial_folders(params)
    require_trainings(params)
    print(f"{file}: every parameter is valid")
    return 0
