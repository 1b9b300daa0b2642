"""Whether bf16 is faster than fp32 on this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.launch import precision
from tessera.launch.precision import slow_bf16

SCRIPT = "import torch; from tessera.launch.precision import slow_bf16; print(slow_bf16(torch.device('cpu')))"
CPU = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""


def told(**environment: str) -> str:
    """What a process says that sees a processor with fewer instructions."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | environment, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="hides instructions of x86 processors")
def test_a_processor_without_instructions_for_bf16_is_told_with_what_it_costs() -> None:
    found = told(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    assert found.startswith("bf16 is not faster than fp32 on this processor (matrix products ")


@pytest.mark.skipif("avx512_bf16" not in CPU and "amx_bf16" not in CPU, reason="needs a processor with bf16")
def test_a_processor_with_instructions_for_bf16_is_not_warned_of() -> None:
    assert told() == "None"


@pytest.mark.parametrize(
    ("product", "convolution", "slow"),
    [(0.5, 0.5, False), (0.99, 0.99, False), (0.5, 1.5, True), (1.0, 0.5, True), (0.5, 1.0, True), (30.0, 5.0, True)],
)
def test_bf16_is_slow_unless_a_product_and_a_convolution_take_less_time_than_in_fp32(
    monkeypatch: pytest.MonkeyPatch, product: float, convolution: float, slow: bool
) -> None:
    found = {"matrix products": product, "convolutions": convolution}
    monkeypatch.setattr(precision, "bf16_slowness", lambda: found)
    said = f"(matrix products {product} times, convolutions {convolution} times as long)"
    said = f"bf16 is not faster than fp32 on this processor {said}"
    assert slow_bf16(torch.device("cpu")) == (said if slow else None)


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_is_asked_for_instructions_and_not_measured(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "bf16_slowness", lambda: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    said = "bf16 is slower than fp32 on Tesla T4, which has no instructions for it"
    assert slow_bf16(torch.device("cuda")) == (None if fast else said)
