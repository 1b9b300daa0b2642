"""Builds a model from a configuration that may ask for any size, in bounded memory and time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

SLACK = 4  # a model may hold its parameters several times while it is built
FURTHER = 1000  # tensors that a model may have besides, such as buffers that no file holds
# Values of one tensor, and of all buffers together, that any model may have: a buffer need not be among the weights.
ONE_TENSOR, BUFFERS = 2**28, 2**29
SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)  # whose arguments are a shape
TOO_LARGE = "its configuration is that of a larger model than its weights"


def _shape(arguments: Sequence[Any]) -> Sequence[int]:
    """A shape that is given as one sequence, or as numbers."""
    return arguments[0] if arguments and isinstance(arguments[0], Sequence) else arguments


def _values(function: Callable, arguments: Sequence[Any], named: dict[str, Any]) -> float:
    """How many values a function of torch makes, where its arguments tell it; else 0."""
    if function in SIZED:
        return math.prod(named["size"] if "size" in named else _shape(arguments))
    if function is torch.full:
        return math.prod(named["size"] if "size" in named else arguments[0])
    if function is torch.arange:
        numbers = [*arguments, *(named[name] for name in ("start", "end", "step") if name in named)]
        start, end, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
        return abs(end - start) / abs(step)
    if function is torch.cartesian_prod:
        return len(arguments) * math.prod(len(one) for one in arguments)
    if function is torch.Tensor.repeat:
        return arguments[0].numel() * math.prod(_shape(arguments[1:]))
    return 0


class _Watched(TorchFunctionMode):
    """Refuses to make a tensor of more than `most` values, before it takes memory. It counts in its own thread alone.

    Raises:
        ValueError: a tensor would be larger.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_function__(
        self, function: Callable, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if _values(function, arguments, named) > self.most:
            raise ValueError(TOO_LARGE)
        return function(*arguments, **named)


@contextmanager
def no_larger_than(tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Stop this thread from building a model that is far larger than its weights, before it takes memory or time.

    Raises:
        ValueError: the model has more parameters or buffers, in number or in values, than fit the weights.
    """
    thread, values = threading.get_ident(), SLACK * sum(tensor.numel() for tensor in tensors.values())
    number = SLACK * len(tensors) + FURTHER
    left = {"parameters": [number, values + 2**20], "buffers": [number, max(2 * values, BUFFERS)]}

    def counting(kind: str) -> Callable[[Any, str, torch.Tensor | None], None]:
        def count(module: Any, name: str, tensor: torch.Tensor | None) -> None:
            if tensor is None or threading.get_ident() != thread:
                return
            left[kind] = [left[kind][0] - 1, left[kind][1] - tensor.numel()]
            if min(left[kind]) < 0:
                raise ValueError(TOO_LARGE)

        return count

    hooks = [
        register_module_parameter_registration_hook(counting("parameters")),
        register_module_buffer_registration_hook(counting("buffers")),
    ]
    try:
        with _Watched(max(values, ONE_TENSOR)):
            yield
    finally:
        for hook in hooks:
            hook.remove()
