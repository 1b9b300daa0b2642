"""Write params.yaml for a folder of images and for this machine: python -m tessera start FOLDER [--minutes 15].

It looks at the images and at the machine, times a few steps, and writes a whole params.yaml. There a comment beside
each of the most important values says why it was chosen. It prints what will be made, how long each stage will take,
and how much disk it needs. Nothing else is spent before `dvc repro`. docs/guide/sizes.md has the rules.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tessera import paths
from tessera.cli.preset import leaves
from tessera.launch.threads import number_of_threads, thread_environment
from tessera.parameters import read_yaml

MOST_MINUTES = 10_000  # that may be given


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="FOLDER", help="a folder of images; `digits` for scikit-learn's")
    parser.add_argument("--minutes", type=_minutes, default=15.0, help="for the whole pipeline (default: 15)")
    parser.add_argument("--side", type=_side, help="pixels a side (default: what the images and the time allow)")
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="the file to write (default: %(default)s)")
    arguments = parser.parse_args(argv)
    runtime = _runtime(arguments.params)
    processes = runtime.get("runtime.processes") or 1  # where it is null, GPUs are counted later, by torch
    with thread_environment(number_of_threads(runtime.get("runtime.threads"), processes)):
        from tessera.cli.start.search import search  # imports torch, which reads the environment of threads

        print(search(arguments.source, arguments.minutes, arguments.side, arguments.params, runtime))
    return 0


def _runtime(file: Path) -> dict[str, Any]:
    """The section `runtime` of a parameter file by dotted path; nothing if there is no file."""
    values = leaves(read_yaml(file)) if file.exists() else {}
    return {path: value for path, value in values.items() if path.startswith("runtime.")}


def _minutes(text: str) -> float:
    value = float(text)
    if not 1 <= value <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_MINUTES} minutes, got {text}")
    return value


def _side(text: str) -> int:
    value = int(text)
    if not 8 <= value <= 256 or value % 4:
        raise argparse.ArgumentTypeError(f"expected a multiple of 4 from 8 to 256, got {text}")
    return value
