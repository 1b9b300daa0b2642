"""Say whether the pipeline can run here, and what stands in its way: python -m tessera doctor.

It looks at the libraries, the devices, the parameter file, Git and DVC, saved states, and the code on Python's path. It
compares memory and disk with what the parameters will need. The exit status is 0 if the pipeline can run, and 1 if it
cannot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tessera import paths
from tessera.cli.doctor.finding import Finding, Level
from tessera.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    worst = Level.OK
    for finding in findings(parser.parse_args(argv).params):
        print(finding, flush=True)
        worst = max(worst, finding.level)
    return 1 if worst is Level.ERROR else 0


def findings(file: Path) -> Iterator[Finding]:
    """All that there is to say. What needs a library that is broken is left out."""
    from tessera.cli.doctor import folder, libraries
    from tessera.parameters import load

    broken = False
    for finding in libraries.look():
        yield finding
        broken |= finding.level is Level.ERROR
    yield from folder.look()
    try:
        params = load(file)
    except UserError as error:
        yield Finding(Level.ERROR, "parameters", str(error))
        return
    yield from folder.look_at_source(params)
    yield from folder.look_at_initial(params)
    yield from libraries.look_at_trackers(params.runtime.trackers)
    if not broken:
        from tessera.cli.doctor import machine

        yield from machine.look(params)
