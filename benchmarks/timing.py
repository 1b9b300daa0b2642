"""What the benchmarks measure with: times in turn, quartiles, peak memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def turns(actions: dict[T, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[T, list[float]]:
    """Seconds that each action takes, in each turn.

    One of each, then the next of each: a machine that is busy for a while slows all of them.
    """
    times: dict[T, list[float]] = {name: [] for name in actions}
    for turn in range(warmup + repeats):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if turn >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def in_turn(actions: dict[T, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[T, dict[str, float]]:
    """Seconds that each action takes, as {low, median, high} quartiles; see `turns`."""
    return {name: quartiles(values) for name, values in turns(actions, repeats, warmup).items()}


def quartiles(values: list[float]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), np.percentile(values, [25, 50, 75]).tolist(), strict=True))


def show(times: dict[str, dict[str, float]]) -> None:
    """Print a line an action, in milliseconds."""
    for name, t in times.items():
        print(f"  {name:24} {t['median'] * 1e3:9.2f} ms ({t['low'] * 1e3:.2f} to {t['high'] * 1e3:.2f})", flush=True)


def resident(peak: bool = False) -> float:
    """This process's resident memory in MB (2**20 bytes), or the most since `forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", status).group(1)) / 1024


def forget_peak() -> None:
    """Let the peak begin again at what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
