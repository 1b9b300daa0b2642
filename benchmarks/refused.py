"""How soon is a stage that runs already in this folder refused? Every stage of dvc.yaml, in turn.

    python benchmarks/refused.py [--repeats 10] [--json FILE]

This script holds the stages' locks in an empty folder, and starts each entry point by hand beside itself. Each one must
end with exit status 75. Times are from the start of Python to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from repository import REPOSITORY
from timing import in_turn, show

from tessera.cli.fingerprint import PIPELINE, stages
from tessera.locks import LOCKS, acquire

BUSY = 75


def start(module: str) -> None:
    """Start an entry point, and see that it is refused."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True)
    if done.returncode != BUSY:
        raise SystemExit(f"{module}: exit status {done.returncode} instead of {BUSY}: {done.stderr[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    file = options.json.absolute() if options.json else None
    modules = stages(REPOSITORY / PIPELINE)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        os.chdir(folder)
        for module in modules.values():
            held.enter_context(acquire(LOCKS / module, f"is running {module} in this folder"))
        times = in_turn({stage: partial(start, module) for stage, module in modules.items()}, options.repeats)
        os.chdir("/")
    show(times)
    if file:
        file.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
