"""Check the whole of a parameter file: python -m tessera check [FILE]."""

from __future__ import annotations

import argparse
from pathlib import Path

from tessera import paths
from tessera.parameters import load


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tessera check", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=paths.PARAMS, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    load(arguments.file)
    print(f"{arguments.file}: every parameter is valid")
    return 0
