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
from common.project import Unchanged


def main(
    run: Callable[[Params, argparse.Namespace], None],
    description: str,
    argv: list[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse the command line, check params.yaml, run; a `UserError` becomes one line and exit status 2.

    So does an edit of params.yaml or of the code while it ran: DVC takes down what files are when a stage ends, and
    would take the result for that of the edited ones.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    if add_arguments:
        add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        before = Unchanged(arguments.params)
        run(load(arguments.params), arguments)
        if changed := before.changed():
            raise UserError(
                f"{changed[0]}: edited while this ran; what it made is of the file as it was; run it again (a training "
                "goes on from what it saved, unless its parameters have changed, or it was finished with other code)"
            )
    except Exception as error:
        if not isinstance(error, UserError):
            error = _explained(error)
            if error is None:
                raise
        # The processes of a machine fail alike, and one voice is enough; but each machine has its own.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            rank = os.environ.get("RANK", "0")
            print("error: " + (f"[process {rank}] " if rank != "0" else "") + str(error), file=sys.stderr)
        return 2
    return 0


def _explained(error: Exception) -> UserError | None:
    """What a user can do about an error of torch's, or None; by name, since torch is not imported here."""
    names, said = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if "OutOfMemoryError" in names:
        return UserError(
            f"the GPU's memory is not enough ({said.split('. ')[0]}); lower the batch_size of what ran: that "
            "in the stage's training section, or runtime.batch_size where it measures, or sampling.batch_size"
        )
    if names & {"BackendCompilerFailed", "InductorError"}:
        reason = " ".join(said.split("\n\nSet TORCH")[0].split())[:300]
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's cache of compiled code")
        return UserError(
            f"torch.compile failed ({reason}); set compile to false in the stage's training section, install a C++ "
            f"compiler if there is none, or delete {cache}, where a run that was killed may have left half a file"
        )
    return None
