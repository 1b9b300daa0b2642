"""How long each stage took, and on which machine. No output of a stage holds it, so outputs never depend on the clock.

.state/.times/MODULE.json is of the last parameters that a stage ran with in this folder. It holds the seconds of the
longest run that succeeded, and of runs that were interrupted. The longest one counts, since a finished training that is
only published again takes seconds. The report shows these times. Whoever deletes the folder loses nothing else.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tessera import paths
from tessera.artifacts.files import json_text
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.launch.threads import number_of_threads
from tessera.parameters import Params

TIMES = paths.STATE / ".times"
KINDS = {  # of the values of a record; what has others is damaged, and no record
    **dict.fromkeys(("seconds", "interrupted"), int | float),
    **dict.fromkeys(("processes", "threads"), int),
    **dict.fromkeys(("processor", "system", "python", "torch"), str),
    "gpu": str | None,
}
CPU_NAMES = Path("/proc/cpuinfo")


def of_parameters(uses: tuple[str, ...], params: Params) -> str:
    """The SHA-256 of the parameters that a stage uses, which its record carries."""
    return hashlib.sha256(json_text({path: params.used(path) for path in uses}).encode()).hexdigest()


def recorded(module: str, uses: tuple[str, ...], params: Params) -> dict[str, Any] | None:
    """The record of a stage, or None if none was made with these parameters in this folder."""
    try:
        found = read_json(TIMES / f"{module}.json")
    except UserError:
        return None
    if not isinstance(found, dict) or found.get("parameters") != of_parameters(uses, params):
        return None
    return found if all(isinstance(found.get(name), kind) for name, kind in KINDS.items()) else None


@contextmanager
def measured(module: str, uses: tuple[str, ...], params: Params) -> Iterator[dict[str, Any]]:
    """A context around the work of a stage, at whose end its record is written. A failure to write it fails nothing.

    Yields:
        A dictionary in which the work notes `processes`, how many share it, and `finished`, whether it succeeded.
    """
    outcome, began = {"processes": 1, "finished": False}, time.monotonic()
    try:
        yield outcome
    finally:
        with suppress(Exception):  # it would take the place of what the stage itself raised
            _write(module, uses, params, outcome, time.monotonic() - began)


def _write(module: str, uses: tuple[str, ...], params: Params, outcome: dict[str, Any], seconds: float) -> None:
    before = recorded(module, uses, params) or {"seconds": 0.0, "interrupted": 0.0}
    if outcome["finished"] and seconds < before["seconds"]:
        return
    taken = {name: before[name] for name in ("seconds", "interrupted")}
    if outcome["finished"]:
        taken["seconds"] = round(seconds, 1)
    else:
        taken["interrupted"] = round(before["interrupted"] + seconds, 1)
    found = {"parameters": of_parameters(uses, params), **_machine(params, outcome["processes"]), **taken}
    TIMES.mkdir(parents=True, exist_ok=True)
    # Neither flushed nor replaced in one step: a record that is cut off is no record, and a full disk costs no run.
    (TIMES / f"{module}.json").write_text(json_text(found), encoding="utf-8")


def _machine(params: Params, processes: int) -> dict[str, Any]:
    """What decides how fast a stage is. The machine's name is not among it, since reports are shown to others."""
    cores = [line.partition(":")[2].strip() for line in _lines(CPU_NAMES) if line.startswith("model name")]
    torch = sys.modules.get("torch")
    gpu = torch is not None and not os.environ.get("ACCELERATE_USE_CPU") and torch.cuda.is_available()
    return {
        "processor": (cores or [platform.processor() or platform.machine()])[0],
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "processes": processes,
        # A launcher sets WORLD_SIZE. Its processes may run on several machines, and only those of this one share cores.
        "threads": number_of_threads(params.runtime.threads, None if "WORLD_SIZE" in os.environ else processes),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
