"""Threads of libgomp that wait for one another spin while cores are free, and sleep while other programs want them.

A thread that is done early looks again and again whether the others are done too. It spins for some milliseconds before
it sleeps. On an idle machine that saves time. On a busy one the thread keeps the core from the very thread for which it
waits (docs/benchmarks.md). How long threads spin is read once, when libgomp is loaded. But while libgomp counts more
threads than cores, it lets them sleep after 100 looks. So this process gets a few more threads, which only sleep, for
as long as other programs want its cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from tessera.launch.load import cores_of_others, look

APART = 1.0  # seconds between two looks at the other programs
SPARE = 0.5  # as many cores other programs may take from this process before its threads stop to spin


@contextlib.contextmanager
def spinning_on_free_cores(threads: int, root: Path = Path("/")) -> Iterator[None]:
    """Within a `with` block, threads that wait sleep almost at once while other programs want the cores.

    Nothing is done for a process that computes with one thread, or if GOMP_SPINCOUNT or OMP_WAIT_POLICY is set.

    Args:
        threads: how many threads this process computes with.
        root: the folder that holds `proc`. Tests pass another one.
    """
    if threads == 1 or any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(threads, root, ended), daemon=True, name="watch other programs")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(threads: int, root: Path, ended: threading.Event) -> None:
    """Have libgomp count more threads than cores while other programs want the cores, until `ended` is set."""
    sleeping: dict[Path, threading.Event] = {}  # what wakes the threads, for each library
    before = look(root)
    while before and not ended.wait(APART) and (now := look(root)):
        if cores_of_others(before, now) + threads > len(os.sched_getaffinity(0)) + SPARE:
            for library in _loaded() - sleeping.keys():
                wake = sleeping[library] = threading.Event()
                threading.Thread(target=_sleep, args=(library, threads, wake), daemon=True, name="sleep").start()
        else:
            _wake(sleeping)
        before = now
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


def _sleep(library: Path, threads: int, wake: threading.Event) -> None:
    """Sleep with so many threads that libgomp counts more threads than cores. They end when this thread does."""
    gomp, nothing = ctypes.CDLL(str(library)), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of NULL
    gomp.GOMP_parallel(nothing, None, max(2, gomp.omp_get_num_procs() + 2 - threads), 0)
    wake.wait()
