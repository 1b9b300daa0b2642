"""Whether bf16 is faster than fp32 on this machine. A CPU or a GPU without instructions for bf16 emulates it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

REPEATS = 5


def _seconds(work: Callable[[], object]) -> float:
    """The shortest time of a few runs, after one that is not counted."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


@torch.no_grad()
def bf16_slowness() -> dict[str, float]:
    """How many times as long as in fp32 a matrix product and a convolution take in bf16 on the CPU: measured.

    The convolution is channels-last in bf16 and not in fp32, which is the faster layout of each. One thread measures,
    since several would wait for one another where other programs run. Takes 0.02 s with bf16 instructions, and 0.3 s
    without.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _slowness()
    finally:
        torch.set_num_threads(threads)


def _slowness() -> dict[str, float]:
    matrix, images, kernel = torch.ones(256, 256), torch.ones(4, 64, 16, 16), torch.ones(64, 64, 3, 3)
    half = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    low, low_images, low_kernel = matrix.bfloat16(), images.to(**half), kernel.to(**half)
    product = _seconds(lambda: low @ low) / _seconds(lambda: matrix @ matrix)
    convolution = _seconds(lambda: F.conv2d(low_images, low_kernel)) / _seconds(lambda: F.conv2d(images, kernel))
    return {"matrix products": product, "convolutions": convolution}


def slow_bf16(device: torch.device) -> str | None:
    """What bf16 costs on a device where it is not faster than fp32, for a message; None where it is faster.

    A CPU is measured: a matrix product and a convolution must both take less time in bf16, because stage 1 and the
    classifier consist of convolutions, and most priors of products. A GPU is asked whether it has instructions for
    bf16.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return f"bf16 is slower than fp32 on {torch.cuda.get_device_name(device)}, which has no instructions for it"
    if device.type != "cpu":
        return None
    slow = bf16_slowness()
    # With instructions, both take about half the time. Without them, a product takes ten to fifty times as long.
    if max(slow.values()) < 1:
        return None
    factors = ", ".join(f"{name} {factor:.1f} times" for name, factor in slow.items())
    return f"bf16 is not faster than fp32 on this processor ({factors} as long)"
