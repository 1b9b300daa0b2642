"""Threads of libgomp that wait for one another spin while cores are free, and sleep while other programs want them.

libgomp is torch's OpenMP library. A thread of it that is done early looks again and again whether the others are done
too. It spins for some milliseconds before it sleeps. On an idle machine that saves time. On a busy one the thread keeps
the core from the very thread for which it waits (docs/benchmarks.md). How long threads spin is read once, when libgomp
is loaded. But while libgomp counts more threads than cores, it lets them sleep after 100 looks. So while other programs
want the cores, this process gets as many more threads as there are cores. They only sleep.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tessera.launch.cores import available_cores
from tessera.launch.load import cores_of_others, crowded, look

APART = 1.0  # seconds between two looks at the other programs
MOST_CORES = 16  # with more, as many more threads would be needed
SPARE_THREADS = 16  # that the process must be able to start besides those that sleep


@contextlib.contextmanager
def spinning_on_free_cores(threads: int) -> Iterator[None]:
    """Within a `with` block, threads that wait sleep almost at once while other programs want the cores.

    Nothing is done for a process that computes with one thread or that may start few more threads, on a machine with
    more than `MOST_CORES` cores, where the load is not known (`look`), or if GOMP_SPINCOUNT or OMP_WAIT_POLICY is set.

    Args:
        threads: how many threads this process computes with.
    """
    chosen = any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    if threads == 1 or available_cores() > MOST_CORES or chosen:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(threads, ended), daemon=True, name="watch other programs")
    with contextlib.suppress(RuntimeError):  # no further thread may be started
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if watcher.ident is not None:
            watcher.join()


def _watch(threads: int, ended: threading.Event) -> None:
    """Have libgomp count more threads than cores while other programs want the cores, until `ended` is set."""
    sleeping: dict[Path, threading.Event] = {}  # what wakes the threads, for each library
    before = look()
    try:
        while before and not ended.wait(APART) and (now := look()):
            if crowded(cores_of_others(before, now), threads):
                for library in _loaded() - sleeping.keys():
                    wake = sleeping[library] = threading.Event()
                    threading.Thread(target=_sleep, args=(library, wake), daemon=True, name="sleep").start()
            else:
                _wake(sleeping)
            before = now
    except (OSError, RuntimeError):  # /proc cannot be read any more, or no further thread may be started
        pass
    finally:
        _wake(sleeping)


def _wake(sleeping: dict[Path, threading.Event]) -> None:
    for wake in sleeping.values():
        wake.set()
    sleeping.clear()


def _loaded() -> set[Path]:
    """The files of libgomp in this process. Each package may bring one of its own, with threads of its own."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        files = {Path(line.split(maxsplit=5)[5].rstrip("\n")) for line in maps if "libgomp" in line}
    return {file for file in files if file.name.startswith("libgomp") and file.exists()}


def _sleep(library: Path, wake: threading.Event) -> None:
    """Sleep beside as many sleeping threads of libgomp as there are cores. They end when this thread does.

    Does nothing where the process may not start many more threads.
    """
    with contextlib.suppress(OSError):  # the file cannot be loaded a second time
        gomp, free = ctypes.CDLL(str(library)), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        cores = gomp.omp_get_num_procs()
        if _can_start(cores + SPARE_THREADS):  # if libgomp cannot start a thread, it ends the process
            gomp.GOMP_parallel(free, None, cores + 1, 0)  # each calls free(NULL), which does nothing
            wake.wait()


def _can_start(count: int) -> bool:
    """Whether the process may start so many more threads, beside those that it has. It starts them, and ends them."""
    end, started = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True
