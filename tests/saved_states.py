"""A folder of saved states: small ones are saved, and told by their steps."""

from __future__ import annotations

import torch

from tessera.training.checkpoint import StateFolder


def folder() -> StateFolder:
    return StateFolder("train_vqvae", "abc", exclusive=True)


def save(state: StateFolder, *steps: int) -> None:
    for step in steps:
        state.save(step, {"x": torch.full((3,), float(step))}, {"progress": {"step": step}}, keep=2)


def kept(state: StateFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in state.folder.glob("step-*"))


def latest_step(state: StateFolder) -> int | None:
    found = state.latest()
    return None if found is None else found[1]["step"]
