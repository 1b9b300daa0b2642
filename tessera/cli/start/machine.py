"""What the machine offers."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import torch

from tessera.launch.precision import slow_bf16
from tessera.launch.threads import number_of_threads

COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}  # that torch.compile needs


@dataclass(frozen=True)
class Machine:
    """What decides how fast a training is.

    Attributes:
        threads: number of threads that a stage takes.
        memory: bytes of main memory, or None where the system does not say.
        gpu: the name of the first GPU, or None.
        slow_bf16: why bf16 is slow here, or None where it is not.
        compiler: whether torch.compile finds what it needs.
    """

    threads: int
    memory: int | None
    gpu: str | None
    slow_bf16: str | None
    compiler: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")


def look(threads: int | None) -> Machine:
    """The machine as it is now.

    Args:
        threads: `runtime.threads`.
    """
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    pages = os.sysconf_names.get("SC_PHYS_PAGES") and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kind = "cuda" if gpu else "cpu"
    slow = slow_bf16(torch.device("cpu"))
    if gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        slow = None if fast else f"{gpu} has no instructions for bf16"
    return Machine(
        threads=number_of_threads(threads),
        memory=pages or None,
        gpu=gpu,
        slow_bf16=slow,
        compiler=any(shutil.which(name) for name in COMPILERS[kind]),
    )
