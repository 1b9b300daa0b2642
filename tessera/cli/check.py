"""Check the whole of a parameter file, its source of images, its trackers, the models that trainings begin with, and
what would refuse a training: python -m tessera check [FILE]. `--params FILE` means the same, as for the stages."""

from __future__ import annotations

import argparse
from pathlib import Path

from stage0_images.places import check_places
from tessera import paths
from tessera.parameters import Params, load
from tessera.training.checks import require_initial_folders, require_pieces, require_trainings
from tessera.training.tracked import require_trackers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tessera check", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help=f"default: {paths.PARAMS}")
    parser.add_argument("--params", type=Path, default=paths.PARAMS, metavar="FILE", help="the same")
    arguments = parser.parse_args(argv)
    file = arguments.file or arguments.params
    params = load(file)
    check_places(params.data)
    require_trackers(params.runtime.trackers)
    require_initial_folders(params)
    require_trainings(params)
    if params.runtime.micro_batch:
        _require_pieces(params)
    print(f"{file}: every parameter is valid")
    return 0


def _require_pieces(params: Params) -> None:
    """Check that every training that there will be can be done in micro-batches. It builds models, which takes seconds.

    Raises:
        UserError: a loss has no micro-batches; or the weights of a feature network are missing.
    """
    from tessera.cli.doctor.machine import tasks
    from tessera.cli.start.rehearsal import image_stats

    for _, task, _ in tasks(params, image_stats(params)):
        require_pieces(task, params.runtime)
