"""How many threads a process uses. Imports no torch, so that the number is known before torch is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tessera.launch.cores import available_cores
from tessera.launch.parents import check_variables
from tessera.launch.spinning import spinning_on_free_cores


def number_of_threads(wanted: int | None, processes: int | None = None) -> int:
    """The number of threads for one process.

    Args:
        wanted: `runtime.threads`, which decides if it is not null. Otherwise OMP_NUM_THREADS decides if it is set.
            Otherwise the processes on this machine divide the available cores among them.
        processes: number of processes on this machine. By default this is LOCAL_WORLD_SIZE, which launchers set, or 1.

    Raises:
        UserError: LOCAL_WORLD_SIZE decides, and the launcher's variables are not whole.
    """
    if wanted is not None:
        return wanted
    # OpenMP allows a list with one number for each level of nested parallel regions. torch uses the first.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first)
    if processes is None:
        check_variables()
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, available_cores() // processes)


@contextlib.contextmanager
def thread_environment(threads: int) -> Iterator[None]:
    """Within a `with` block, tell all libraries the number of threads by environment variables.

    Libraries read the variables when they are loaded, so torch and numpy must be imported inside the block. On exit the
    variables get their old values back. Threads that wait for one another spin only while cores are free (`spinning`).

    OpenMP, MKL and OpenBLAS, and so torch and numpy, read OMP_NUM_THREADS, which is overwritten. torch.compile starts
    as many compiler processes as TORCHINDUCTOR_COMPILE_THREADS says, which stays if it is set already. torch's inter-op
    threads need no limit: only `torch.jit.fork` uses them, which this project does not call.

    Args:
        threads: the number of threads.
    """
    changes = {"OMP_NUM_THREADS": str(threads)}
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        changes["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        with spinning_on_free_cores(threads):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
