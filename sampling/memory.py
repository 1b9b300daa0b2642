"""Finds out how many images can be drawn at once with the memory that is free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import nn

from stage2_prior.priors.base import Prior
from tessera.footprint import LIVE_OUTPUTS, LargestOutput

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # memory limits of containers and jobs
MOST = 1024  # images at once; larger batches are no faster
PART = 0.5  # of the free memory that is used; the rest is for what is not counted here, and for other programs
BYTES_PER_LOGIT = 6 * 8  # choosing a token keeps six float64 tensors: guided, sorted and accumulated logits, and others


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
    lines = OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else []
    own = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]
    folder = CGROUP / own[0] if own else CGROUP
    return [group for group in (folder, *folder.parents) if group.is_relative_to(CGROUP)]


def file_cache(group: Path) -> int:
    """Bytes in which a control group caches files. The system gives them back when memory is needed."""
    figures = group / "memory.stat"
    lines = figures.read_text().splitlines() if figures.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


@torch.inference_mode()
def image_bytes(vqvae: nn.Module, prior: Prior, device: torch.device) -> int:
    """Bytes of memory that each further image of a batch takes, with guidance where the prior has classes."""
    tokens = torch.zeros(1, prior.layout.num_tokens, dtype=torch.int64, device=device)
    with LargestOutput(vqvae) as largest:
        vqvae.decode(prior.layout.unflatten(tokens))
    rows = 2 if prior.num_classes else 1  # guidance decodes the null label too
    return max(rows * prior.decoding_bytes(device, BYTES_PER_LOGIT), LIVE_OUTPUTS * largest.bytes)


def batch_size(one_image: int, prior: nn.Module, device: torch.device) -> int:
    """Number of images to draw at once, from 1 to `MOST`: as many as half of the free memory holds.

    Args:
        one_image: bytes that one image takes, see `image_bytes`.
        prior: the prior that draws the codes, on `device`.
    """
    # On a CPU, decoding keeps two copies of the prior's weights: joined or transposed, and laid out for fast products.
    copied = 2 * sum(p.nbytes for p in prior.parameters()) if device.type == "cpu" else 0
    return max(1, min(MOST, int((PART * free_bytes(device) - copied) / one_image)))
