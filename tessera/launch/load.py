"""How many cores other programs keep busy, and whether they take them from this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from tessera.launch.cores import available_cores, cgroup_quota

MARGIN = 0.25  # the part of the cores that other programs may take from a process unnoticed


class Look(NamedTuple):
    """How long the cores of this process have worked until a moment, in seconds."""

    moment: float
    all_programs: float  # the sum over the cores
    this_one: float


def look(root: Path = Path("/")) -> Look | None:
    """How long the cores that this process may use have worked so far.

    None where the system does not say, as in a container that numbers its cores anew. None for a process with a quota
    of fewer cores too: /proc shows what all programs of the machine do, and these do not use up the quota.

    Args:
        root: the folder that holds `proc`. Tests pass another one.
    """
    try:
        cores = os.sched_getaffinity(0)
        lines = [line.split() for line in (root / "proc/stat").read_text(encoding="ascii").splitlines()]
        ticks = [[int(word) for word in words[1:8]] for words in lines if words[0] in {f"cpu{core}" for core in cores}]
        worked = sum(user + nice + system + irq + softirq for user, nice, system, _, _, irq, softirq in ticks)
        tick = 1 / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux, or not what Linux writes
        return None
    quota = cgroup_quota(root)
    if len(ticks) < len(cores) or (quota is not None and quota < len(cores)):
        return None
    return Look(time.monotonic(), worked * tick, time.process_time())


def cores_of_others(before: Look, after: Look) -> float:
    """How many of the cores other programs kept busy between two looks, on average."""
    all_programs, this_one = after.all_programs - before.all_programs, after.this_one - before.this_one
    return max(0.0, all_programs - this_one) / (after.moment - before.moment)


def crowded(others: float, threads: int) -> bool:
    """Whether other programs take cores from this process.

    Args:
        others: how many cores they keep busy.
        threads: how many threads this process computes with.
    """
    cores = available_cores()
    return others + min(threads, cores) > (1 + MARGIN) * cores


def cores_of_others_now(seconds: float = 0.5) -> float:
    """How many of the cores other programs keep busy in the next seconds, or 0 where the system does not say."""
    before = look()
    time.sleep(seconds)
    after = look()
    return cores_of_others(before, after) if before and after else 0.0
