"""How many threads a process uses. Imports no torch, so that the number is known before torch is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tessera.launch.parents import check_variables
from tessera.launch.spinning import spinning_on_free_cores

FILES = ("cgroup", "mountinfo")  # of a process in /proc: its groups, and what is mounted where


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


def available_cores() -> int:
    """The number of cores that this process may keep busy: the smaller of its CPU affinity and its cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The number of cores that Linux control groups (cgroups) leave to this process, or None if they set no limit.

    Containers and batch systems limit the CPU in this way. A group is limited by every group around it too, so the
    smallest quota on the way up counts. Versions 1 and 2 of cgroups are understood.

    Args:
        root: the folder that holds `proc` and `sys`. Tests pass another one.
    """
    try:
        # Names of groups and of mounted folders may be any bytes.
        lines = [(root / f"proc/self/{name}").read_bytes().decode(errors="surrogateescape") for name in FILES]
    except OSError:  # not Linux
        return None
    memberships, mounts = ([line for line in text.split("\n") if line] for text in lines)
    quotas = []
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mounted_group, folder in _mounts(mounts, version=1 if controllers else 2):
            top = root / folder.lstrip("/")
            for place in _on_the_way_up(PurePosixPath(group), PurePosixPath(mounted_group)):
                quota = _quota(top / place, version=1 if controllers else 2)
                if quota is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _mounts(lines: list[str], version: int) -> Iterator[tuple[str, str]]:
    """The group that is mounted and the folder where it is, for every mount of the CPU controller.

    Args:
        lines: /proc/self/mountinfo. The file system's type and options come after " - ".
    """
    for line in lines:
        place, _, system = line.partition(" - ")
        kind, _, options = (*system.split(" ", 2), "", "")[:3]
        if (version == 2 and kind == "cgroup2") or (version == 1 and kind == "cgroup" and "cpu" in options.split(",")):
            _, _, _, mounted_group, folder, *_ = place.split(" ")
            yield mounted_group, folder


def _on_the_way_up(group: PurePosixPath, mounted_group: PurePosixPath) -> list[PurePosixPath]:
    """The folder of a group and of every group around it, relative to the mount.

    In a container the process may be named by its place outside, which the mount does not show. The mount's own folder
    is then the container's group.
    """
    if not group.is_relative_to(mounted_group) or ".." in group.parts:
        return [PurePosixPath(".")]
    inside = group.relative_to(mounted_group)
    return [inside, *inside.parents]


def _quota(folder: Path, version: int) -> float | None:
    """The number of cores that one group allows, or None for no limit."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):  # the topmost group has no such file
        return None


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
