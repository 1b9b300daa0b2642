"""The stack language in which a .pth file describes its tensors. Only what describes tensors is known.

A file in this language could also ask for any function to be called. `Stream` imports nothing and calls nothing that a
file names; whatever else a file asks for is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

OPERATIONS_MOST = 2**22  # operations that describe a value, at most; a network of 1,000 tensors has about 50,000
LARGEST_NUMBER, MOST_DIMENSIONS = 2**40, 64  # of a tensor's size and its place in the storage

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What a file may name, and what it stands for here. Nothing of it is looked up in a module.
NAMES = {("torch", name): dtype for name, dtype in DTYPES.items()}
NAMES |= {
    ("collections", "OrderedDict"): "dictionary",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
}

VIEWS = ((), (None,))  # what may end a reference to a storage


class Refused(ValueError):
    """The file is damaged, or asks for something else than tensors; the reason."""


@dataclass(frozen=True)
class Name:
    """One of `NAMES`, as the file names it."""

    stands_for: Any


@dataclass(frozen=True)
class Storage:
    """Where a tensor's values lie: the storage's key in the file, their type, and how many there are."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class Described:
    """A tensor as the file describes it: its storage, the place of its first value there, its size and strides."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _whole(*values: Any) -> tuple[int, ...]:
    """Numbers that a size or a place can have.

    Raises:
        Refused: one of them is negative, too large or no whole number, or there are too many.
    """
    if len(values) > MOST_DIMENSIONS or not all(type(v) is int and 0 <= v < LARGEST_NUMBER for v in values):
        raise Refused("a tensor's size or place is not made of whole numbers, 0 or more")
    return values


class Stream:
    """Follows the description of one value. Each operation is one byte, most of them followed by arguments."""

    def __init__(self, data: bytes, place: int = 0) -> None:
        """place: where in `data` the description begins. Afterwards it is where the next one begins."""
        self.data, self.place = data, place
        self.stack: list[Any] = []
        self.marks: list[int] = []  # how many values lay on the stack when each mark was set
        self.memory: dict[int, Any] = {}
        self.left = OPERATIONS_MOST

    def take(self, count: int) -> bytes:
        """The next bytes of the description."""
        if count < 0 or self.place + count > len(self.data):
            raise Refused("it ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, layout: str) -> int:
        """The next number, in a layout of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """The text up to the end of the line."""
        end = self.data.index(b"\n", self.place)
        text = self.take(end - self.place).decode("ascii")
        self.place += 1
        return text

    def marked(self) -> list[Any]:
        """Everything above the last mark, which is taken off the stack with it."""
        if not self.marks:
            raise Refused("it goes back to a mark that it has not set")
        place = self.marks.pop()
        found = self.stack[place:]
        del self.stack[place:]
        return found

    def popped(self, count: int) -> list[Any]:
        """The topmost values, which are taken off the stack. None lies below the last mark."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise Refused("it takes more values than it has")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def read(self) -> Any:
        """The value that is described."""
        self.left = OPERATIONS_MOST
        while (operation := self.take(1)) != b".":
            self.spend(1)
            if operation not in OPERATIONS:
                raise Refused(f"it asks for the operation {operation!r}, which no tensor needs")
            OPERATIONS[operation](self)
        (value,) = self.popped(1)
        return value

    def spend(self, operations: int) -> None:
        """Count operations. What one operation does with a value that may be used again counts too."""
        self.left -= operations
        if self.left < 0:
            raise Refused(f"it asks for more than {OPERATIONS_MOST} operations")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Set a mark, up to which `marked` takes values."""
        self.marks.append(len(self.stack))

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values in turn into the dictionary on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise Refused("its dictionary has keys that are no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        """Append values to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise Refused("it appends to what is no list")
        self.stack[-1].extend(items)

    def name(self) -> None:
        """Put what a module's name stands for on the stack."""
        name = (self.line(), self.line())
        if name not in NAMES:
            raise Refused(f"it asks for {'.'.join(name)[:80]}, which no tensor needs")
        self.push(Name(NAMES[name]))

    def stored(self) -> None:
        """A reference to a storage: ("storage", its type, key, device, number of values, perhaps None)."""
        (value,) = self.popped(1)
        # A value of another kind is not looked into: it may hold others many times over.
        if type(value) is not tuple or len(value) not in (5, 6) or type(value[2]) is not str or value[5:] not in VIEWS:
            raise Refused("it has a storage of a kind that is not read")
        word, kind, key, _, count = value[:5]
        if word != "storage" or type(kind) is not Name or not isinstance(kind.stands_for, torch.dtype):
            raise Refused("it has a storage of a kind that is not read")
        self.push(Storage(key, kind.stands_for, *_whole(count)))

    def made(self) -> None:
        """What a name makes of arguments: a dictionary, or the description of a tensor."""
        name, values = self.popped(2)
        if type(name) is not Name or type(values) is not tuple:
            raise Refused("it makes something else than a tensor")
        kind = name.stands_for
        if kind == "dictionary" and len(values) < 2:
            pairs = values[0] if values else ()
            self.spend(len(pairs))
            if any(len(pair) != 2 for pair in pairs):
                raise Refused("its dictionary is not made of pairs")
            self.push({})
            self.set_items([part for pair in pairs for part in pair])
        elif kind == "parameter" and isinstance(values[0], Described):
            self.push(values[0])
        elif kind == "tensor" and isinstance(values[0], Storage) and type(values[2]) is type(values[3]) is tuple:
            self.push(Described(values[0], *_whole(values[1]), _whole(*values[2]), _whole(*values[3])))
        else:
            raise Refused("it makes something else than a tensor")

    def keep(self, place: int) -> None:
        """Remember the value on top of the stack."""
        self.memory[place] = self.stack[-1]

    def drop_state(self) -> None:
        """Attributes of a dictionary, such as the versions of its modules, which no tensor needs."""
        self.popped(1)
        if type(self.stack[-1]) is not dict:
            raise Refused("it sets attributes of something else than a dictionary")


OPERATIONS: dict[bytes, Callable[[Stream], Any]] = {
    b"\x80": lambda s: s.take(1),  # the version of the language
    b"}": lambda s: s.push({}),
    b"]": lambda s: s.push([]),
    b")": lambda s: s.push(()),
    b"(": lambda s: s.mark(),
    b"N": lambda s: s.push(None),
    b"\x88": lambda s: s.push(True),
    b"\x89": lambda s: s.push(False),
    b"K": lambda s: s.push(s.number("<B")),
    b"M": lambda s: s.push(s.number("<H")),
    b"J": lambda s: s.push(s.number("<i")),
    b"\x8a": lambda s: s.push(int.from_bytes(s.take(s.number("<B")), "little", signed=True)),
    b"G": lambda s: s.push(struct.unpack(">d", s.take(8))[0]),
    b"X": lambda s: s.push(s.take(s.number("<I")).decode()),
    b"U": lambda s: s.push(s.take(s.number("<B")).decode("ascii")),
    b"T": lambda s: s.push(s.take(s.number("<I")).decode("ascii")),
    b"t": lambda s: s.push(tuple(s.marked())),
    b"\x85": lambda s: s.push(tuple(s.popped(1))),
    b"\x86": lambda s: s.push(tuple(s.popped(2))),
    b"\x87": lambda s: s.push(tuple(s.popped(3))),
    b"s": lambda s: s.set_items(s.popped(2)),
    b"u": lambda s: s.set_items(s.marked()),
    b"a": lambda s: s.append(s.popped(1)),
    b"e": lambda s: s.append(s.marked()),
    b"q": lambda s: s.keep(s.number("<B")),
    b"r": lambda s: s.keep(s.number("<I")),
    b"h": lambda s: s.push(s.memory[s.number("<B")]),
    b"j": lambda s: s.push(s.memory[s.number("<I")]),
    b"c": lambda s: s.name(),
    b"Q": lambda s: s.stored(),
    b"R": lambda s: s.made(),
    b"b": lambda s: s.drop_state(),
}
