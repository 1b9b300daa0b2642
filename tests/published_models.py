"""A tiny model that is published."""

from __future__ import annotations

from pathlib import Path

import torch

from tessera.artifacts.models import save_model

TENSORS = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.zeros(3, dtype=torch.bfloat16)}
CONFIG = {"name": "tiny", "sizes": [3, 4]}


def publish(folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    save_model(folder, "vqvae", CONFIG, TENSORS if tensors is None else tensors, {"prepared": "a" * 64})
    return folder
