"""Images that were never looked at and machines that are not here, for tests of what `start` chooses."""

from __future__ import annotations

from stage0_images.survey import Survey
from tessera.cli.start import rules
from tessera.cli.start.machine import Machine
from tessera.cli.start.timing import Times

CPU = Machine(threads=2, memory=2**34, gpu=None, slow_bf16=None, compiler=True)
GPU = Machine(threads=8, memory=2**36, gpu="a GPU", slow_bf16=None, compiler=True)
QUICK = Times(0.01, 0.01, 0.01, 1e-4, 1e-4, 1e-4, 1e-3, 10**6)


def survey(train: int = 3000, sides: tuple[int, ...] = (64,), grey: bool = False, **changes: object) -> Survey:
    values = {
        "classes": ("a", "b"),
        "given": ("train",),
        "transparent": 0.0,
        "vanish": {"white": 0.0},
        "refused": 0.0,
        "aspects": (1.0,),
    }
    images = {"train": train, "validation": max(1, train // 10), "test": max(1, train // 10)}
    return Survey(**({"images": images, "sides": sides, "grey": grey} | values | changes))


def choice(found: Survey, machine: Machine = CPU, side: int = 64) -> rules.Choice:
    """All that the rules say of images of one side."""
    return rules.of_side(found, side, "why", machine)
