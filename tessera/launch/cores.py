"""How many cores a process may keep busy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FILES = ("cgroup", "mountinfo")  # of a process in /proc: its groups, and what is mounted where


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
