"""What the machine offers."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import torch

from tessera.features.networks.sections import PACKAGE
from tessera.launch.precision import slow_bf16
from tessera.launch.threads import number_of_threads
from tessera.parameters.parts import options, parameters_of

COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}  # that torch.compile needs


@dataclass(frozen=True)
class Machine:
    """What decides how fast a training is.

    Attributes:
        threads: number of threads that each process of a stage takes.
        memory: bytes of main memory, or None where the system does not say.
        gpu: the name of the first GPU, or None.
        slow_bf16: why bf16 is not faster than fp32 here, or None where it is.
        compiler: whether torch.compile finds a compiler: of C++ for a CPU, of C for a GPU.
        processes: number of processes of a stage.
        judge: the name of a feature network whose weights are installed, or None.
    """

    threads: int
    memory: int | None
    gpu: str | None
    slow_bf16: str | None
    compiler: bool
    processes: int = 1
    judge: str | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")


def look(threads: int | None, processes: int = 1) -> Machine:
    """The machine as it is now.

    Args:
        threads: `runtime.threads`.
        processes: number of processes of a stage.
    """
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    pages = os.sysconf_names.get("SC_PHYS_PAGES") and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kind = "cuda" if gpu else "cpu"
    return Machine(
        threads=number_of_threads(threads),
        memory=pages or None,
        gpu=gpu,
        slow_bf16=slow_bf16(torch.device(kind)),
        compiler=any(shutil.which(name) for name in COMPILERS[kind]),
        processes=processes,
        judge=next((name for name in options(PACKAGE) if parameters_of(PACKAGE, name).at_hand()), None),
    )
