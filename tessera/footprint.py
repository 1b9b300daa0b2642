"""Measures how much memory tensors take: those that an object holds, that a module computes, or keeps for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

LIVE_OUTPUTS = 4  # outputs of the largest layer that are in memory at once while a network runs
BATCH_BYTES = 2**31  # memory that a batch of `images_together` may take
TOGETHER = 64  # the most images of such a batch


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """Every tensor inside a nest of containers and plain objects.

    Modules and callable objects are left out: what they hold are weights, which all sequences share.
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module | str | int | float | None) or callable(value):
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
    """Bytes of the tensors inside an object; memory that several tensors share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(state)}
    return sum(storages.values())


class LargestOutput:
    """Records the size of the largest tensor that a module, or any module inside it, returns within a `with` block.

    Tensors inside a returned tuple or dictionary do not count.

    Attributes:
        bytes: the size so far, which stays after the block; 0 until a module has returned a tensor.
    """

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


def kept_for_backward(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, besides the model's own.

    Memory that several tensors share counts once.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # its graph keeps all that was noted, so that no two have one address
    del result
    return sum(kept.values())


@torch.no_grad()
def images_together(module: nn.Module, run: Callable[[], object], most: int, kept: int = 0) -> int:
    """How many images every batch has where results must not depend on the machine: a power of two up to `TOGETHER`.

    In a batch of another size convolutions round differently, and the code of a vector half way between two codes would
    depend on how the work was divided. So the number depends on the model alone, unless `most` is smaller. It is
    smaller than `TOGETHER` if so many images would need more than `BATCH_BYTES` of memory.

    Args:
        module: the network.
        run: has the network work on one image.
        most: `runtime.batch_size`, by which a user whose memory is short takes a smaller number.
        kept: bytes that stay in memory for each image besides, such as those of `kept_for_backward`.
    """
    with LargestOutput(module) as largest:
        run()
    room = max(1, min(most, BATCH_BYTES // (LIVE_OUTPUTS * max(1, largest.bytes) + kept)))
    return min(TOGETHER, 2 ** (room.bit_length() - 1))
