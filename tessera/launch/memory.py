"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # memory limits of containers and jobs


def free_bytes(device: torch.device) -> int:
    """Bytes of free memory on a device.

    On a GPU this includes memory that torch has reserved and does not use. On the CPU the limits of the process's
    control groups (containers, cluster jobs) count too.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    for group in control_groups():
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
            free = min(free, max(0, int(most) - int(used.read_text()) + file_cache(group)))
    return free


def control_groups() -> list[Path]:
    """The control groups (version 2) of this process, the innermost first. Each may limit its memory."""
    # A group's name may be any bytes.
    lines = OWN_CGROUP.read_bytes().decode(errors="surrogateescape").splitlines() if OWN_CGROUP.is_file() else []
    own = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]
    folder = CGROUP / own[0] if own else CGROUP
    return [group for group in (folder, *folder.parents) if group.is_relative_to(CGROUP)]


def file_cache(group: Path) -> int:
    """Bytes in which a control group caches files. The system gives them back when memory is needed."""
    figures = group / "memory.stat"
    lines = figures.read_text().splitlines() if figures.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
