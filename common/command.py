"""How every entry point starts: arguments, the whole of params.yaml checked, errors as one line.

Imports nothing heavy, so `--help` and a mistake in params.yaml answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from common import paths
from common.errors import UserError
from common.params import Params, load


def main(
    run: Callable[[Params, argparse.Namespace], None],
    description: str,
    argv: list[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse the command line, check params.yaml, run; a `UserError` becomes one line and exit status 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    if add_arguments:
        add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        run(load(arguments.params), arguments)
    except UserError as error:
        # The processes of a machine fail alike, and one voice is enough; but each machine has its own.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            rank = os.environ.get("RANK", "0")
            print("error: " + (f"[process {rank}] " if rank != "0" else "") + str(error), file=sys.stderr)
        return 2
    return 0
