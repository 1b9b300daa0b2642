"""What the machine offers."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import torch

from tessera.launch.precision import slow_bf16
from tessera.launch.threads import number_of_threads

COMPILERS = ("c++", "g++", "clang++")


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
    return Machine(
        threads=number_of_threads(threads),
        memory=pages or None,
        gpu=gpu,
        slow_bf16=None if gpu else slow_bf16(torch.device("cpu")),
        compiler=bool(gpu) or any(shutil.which(name) for name in COMPILERS),
    )
