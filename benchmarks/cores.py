"""How much faster is a stage on several cores than on one?

    python benchmarks/cores.py STAGE [--cores 1 2] [--repeats 3] [-S data.source=FOLDER ...] [--json FILE]

Runs the stage in the current folder, which has a params.yaml and all that the stage reads, on each number of cores in
turn: once as one process with a thread for each core, and once as a process of one thread for each core. What the stage
wrote is deleted before each run. Seconds are of the whole command, with the start of Python and of the libraries, so
that few images gain little. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repository import REPOSITORY
from start import STAGES
from timing import quartiles

from tessera import paths
from tessera.cli.preset import edit, read_changes

WRITES = {
    "prepare": paths.PREPARED,
    "reconstruct": paths.RESULTS / "reconstruct",
    "extract_codes": paths.CODES,
    "sample": paths.SAMPLES,
    "evaluate": paths.RESULTS / "evaluate",
}


def seconds(stage: str, params: Path, cores: list[int]) -> float:
    """One run of a stage on some cores, from nothing."""
    shutil.rmtree(WRITES[stage], ignore_errors=True)
    command = [sys.executable, "-m", STAGES[stage], "--params", str(params)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    os.sched_setaffinity(0, cores)  # the stage inherits it
    began = time.monotonic()
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{stage}: {run.stderr[-2000:]}")
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=WRITES)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="key=value", help="for these runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    own, changes = sorted(os.sched_getaffinity(0)), read_changes(options.changes)
    cases = {(cores, 1): f"{cores} cores, threads" for cores in options.cores}
    cases |= {(cores, cores): f"{cores} cores, processes" for cores in options.cores if cores > 1}
    times: dict[str, list[float]] = {name: [] for name in cases.values()}
    with tempfile.TemporaryDirectory() as folder:
        for processes in {count for _, count in cases}:
            file = Path(folder) / f"{processes}.yaml"
            shutil.copy(paths.PARAMS, file)
            edit(file, changes | {"runtime.processes": processes, "runtime.threads": None})
        for _ in range(options.repeats):
            for (cores, processes), name in cases.items():
                times[name].append(seconds(options.stage, Path(folder) / f"{processes}.yaml", own[:cores]))
    found = {name: quartiles(values) for name, values in times.items()}
    first = next(iter(found.values()))["median"]
    for name, of in found.items():
        print(f"{name}: {of['median']:.1f} s ({of['low']:.1f} to {of['high']:.1f}), {first / of['median']:.2f} times")
    if options.json:
        options.json.write_text(json.dumps({"stage": options.stage, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
