"""Check the whole of a parameter file, and that its source of images is there: python -m tessera check [FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path

from stage0_images.places import check_places
from tessera import paths
from tessera.parameters import load


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tessera check", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=paths.PARAMS, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    check_places(load(arguments.file).data)
    print(f"{arguments.file}: every parameter is valid")
    return 0
