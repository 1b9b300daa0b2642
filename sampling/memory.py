"""How many images fit in memory at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from stage2_prior.priors.base import Autoregressive, Prior
from stage2_prior.priors.chain import Chain
from stage2_prior.priors.grid import GridPrior
from stage2_prior.priors.masked import Masked
from stage2_prior.priors.products import FEW, Product
from stage2_prior.priors.subtokens import SubTokens

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # limits of containers and jobs
MOST = 1024  # images at a time; more are no faster
PART = 0.5  # of what is free: the rest is for what is not counted, and for others
COPIES = 6  # of a step's logits, in float64: guidance, sorted, cumulated
LIVE = 4  # of a layer's output, while the next one works


def free_bytes(device: torch.device) -> int:
    """Bytes that a device has to give: on a GPU also what torch holds unused, in a container what it may have."""
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
    """The control groups (version 2) of this process, from its own up: each may limit its memory."""
    lines = OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.is_file() else []
    own = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]
    folder = CGROUP / own[0] if own else CGROUP
    return [group for group in (folder, *folder.parents) if group.is_relative_to(CGROUP)]


def file_cache(group: Path) -> int:
    """Bytes that a control group uses for files that were read, and gives back when they are wanted."""
    figures = group / "memory.stat"
    lines = figures.read_text().splitlines() if figures.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """Every tensor inside a decoding state, but for weights."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module | Product | str | int | float | None) or callable(value):
        return
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors_in(getattr(value, f.name))
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


def state_bytes(state: Any) -> int:
    """Bytes of the tensors inside a decoding state, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state)}
    return sum(storages.values())


class LargestOutput:
    """The largest output, in bytes, of any module inside one while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.bytes = module, 0

    def __enter__(self) -> LargestOutput:
        self.handles = [m.register_forward_hook(self._note) for m in self.module.modules()]
        return self

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            self.bytes = max(self.bytes, output.nbytes)

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


@torch.inference_mode()
def decoding_bytes(prior: Prior, device: torch.device) -> int:
    """Bytes that decoding one more sequence needs: by two batches, as what serves all sequences is no part of it; of
    more than `FEW`, as these may be kept in another precision."""
    if isinstance(prior, SubTokens):
        return decoding_bytes(prior.inner, device)
    if isinstance(prior, Chain):
        return max(decoding_bytes(link, device) for link in prior.links)
    few, more = (_bytes_of(prior, torch.zeros(rows, dtype=torch.int64, device=device)) for rows in (FEW + 2, FEW + 4))
    return (more - few) // 2 + COPIES * 8 * prior.layout.vocabulary


def _bytes_of(prior: Prior, labels: torch.Tensor) -> int:
    """Bytes that decoding a batch needs besides logits."""
    if isinstance(prior, Masked):
        tokens = labels.new_zeros(len(labels), prior.layout.num_tokens)
        with LargestOutput(prior) as largest:
            logits = prior.predict(tokens, torch.ones_like(tokens[:, prior.given :], dtype=torch.bool), labels)
        return LIVE * max(largest.bytes, logits.nbytes)
    levels = range(prior.first, len(prior.layout.levels)) if isinstance(prior, GridPrior) else [prior.first]
    return max(_level_bytes(prior, level, labels) for level in levels)


def _level_bytes(prior: Autoregressive, level: int, labels: torch.Tensor) -> int:
    """Bytes of the state while a level is decoded: of its first tokens, and what a cache that grows will have."""
    part = prior.layout.slices()[level]
    if isinstance(prior, GridPrior) and level > prior.first:  # each level has a state of its own
        decoding, token = prior.start_at(level, labels, labels.new_zeros(len(labels), part.start)), labels
    else:
        decoding, token = prior.start(labels, labels.new_zeros(len(labels), prior.given)), None
    sizes = []
    for _ in range(min(3, prior.layout.num_tokens - decoding.position)):
        token = prior.step(decoding, token).argmax(-1)
        sizes.append(state_bytes(decoding))
    grown = max(0, sizes[-1] - sizes[-2]) if len(sizes) > 1 else 0
    return sizes[-1] + grown * (prior.layout.num_tokens - decoding.position)


@torch.inference_mode()
def image_bytes(vqvae: nn.Module, prior: Prior, device: torch.device) -> int:
    """Bytes that drawing one more image takes, guidance included."""
    tokens = torch.zeros(1, prior.layout.num_tokens, dtype=torch.int64, device=device)
    with LargestOutput(vqvae) as largest:
        vqvae.decode(prior.layout.unflatten(tokens))
    guided = 2 if prior.num_classes else 1
    return max(guided * decoding_bytes(prior, device), LIVE * largest.bytes)


def batch_size(one_image: int, prior: Prior, device: torch.device) -> int:
    """How many images of so many bytes to draw at once: what fits in half of the free memory, less what decoding keeps
    of the prior's weights on a CPU; at most `MOST`."""
    # A `Product`'s own weights, where they come transposed or joined, and the same laid out.
    copied = 2 * sum(p.nbytes for p in prior.parameters()) if device.type == "cpu" else 0
    return max(1, min(MOST, int((PART * free_bytes(device) - copied) / one_image)))
