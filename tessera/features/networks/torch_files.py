"""Reads the tensors of a .pth file without running anything that the file says.

Such a file describes its tensors in a small stack language, in which a file could also ask for any function to be
called. `_Stream` knows only the operations that describe tensors by name. It imports nothing and calls nothing;
whatever else a file asks for is refused. Both layouts are read: the zip archive, and the one before torch 1.6.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tessera.documents import read_bytes
from tessera.errors import UserError

LARGEST_FILE = 2**31  # bytes; VGG-16 with its classifier has 528 MB
MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of the older layout
MARK = object()

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


class _Refused(ValueError):
    """The file is damaged, or asks for something else than tensors; the reason."""


@dataclass(frozen=True)
class _Name:
    """One of `NAMES`, as the file names it."""

    stands_for: Any


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's values lie: the storage's key in the file, their type, and how many there are."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _Described:
    """A tensor as the file describes it: its storage, the place of its first value there, its size and strides."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Stream:
    """Follows the description of one value. Each operation is one byte, most of them followed by arguments."""

    def __init__(self, data: bytes, place: int = 0) -> None:
        """place: where in `data` the description begins. Afterwards it is where the next one begins."""
        self.data, self.place = data, place
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        if count < 0 or self.place + count > len(self.data):
            raise _Refused("it ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, layout: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.place)
        text = self.take(end - self.place).decode("ascii")
        self.place += 1
        return text

    def marked(self) -> list[Any]:
        """Everything above the last mark, which is taken off the stack with it."""
        place = max(i for i, value in enumerate(self.stack) if value is MARK)
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def popped(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise _Refused("it takes more values than it has")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def read(self) -> Any:
        """The value that is described."""
        while (operation := self.take(1)) != b".":
            if operation not in OPERATIONS:
                raise _Refused(f"it asks for the operation {operation!r}, which no tensor needs")
            OPERATIONS[operation](self)
        (value,) = self.popped(1)
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise _Refused("its dictionary has keys that are no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _Refused("it appends to what is no list")
        self.stack[-1].extend(items)

    def name(self) -> None:
        name = (self.line(), self.line())
        if name not in NAMES:
            raise _Refused(f"it asks for {'.'.join(name)[:80]}, which no tensor needs")
        self.push(_Name(NAMES[name]))

    def stored(self) -> None:
        """A reference to a storage: ("storage", its type, key, device, number of values, perhaps None)."""
        (value,) = self.popped(1)
        word, kind, key, _, count, *view = value
        if word != "storage" or not isinstance(kind.stands_for, torch.dtype) or view not in ([], [None]):
            raise _Refused("it has a storage of a kind that is not read")
        self.push(_Storage(str(key), kind.stands_for, int(count)))

    def made(self) -> None:
        """What a name makes of arguments: a dictionary, or the description of a tensor."""
        name, values = self.popped(2)
        kind = name.stands_for
        if kind == "dictionary" and len(values) < 2:
            self.push({})
            self.set_items([part for pair in (values[0] if values else ()) for part in pair])
        elif kind == "parameter" and isinstance(values[0], _Described):
            self.push(values[0])
        elif kind == "tensor" and isinstance(values[0], _Storage):
            self.push(_Described(values[0], int(values[1]), tuple(values[2]), tuple(values[3])))
        else:
            raise _Refused("it makes something else than a tensor")

    def keep(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def drop_state(self) -> None:
        """Attributes of a dictionary, such as the versions of its modules, which no tensor needs."""
        self.popped(1)
        if type(self.stack[-1]) is not dict:
            raise _Refused("it sets attributes of something else than a dictionary")


OPERATIONS: dict[bytes, Callable[[_Stream], Any]] = {
    b"\x80": lambda s: s.take(1),  # the version of the language
    b"}": lambda s: s.push({}),
    b"]": lambda s: s.push([]),
    b")": lambda s: s.push(()),
    b"(": lambda s: s.push(MARK),
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


def read_torch_file(path: Path, advice: str) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors of a .pth file by name, and the file's bytes.

    Args:
        advice: what the user is told to do about a failure.

    Raises:
        UserError: the file is missing or damaged, or holds anything but a dictionary of tensors.
    """
    data = read_bytes(path, LARGEST_FILE, advice)
    try:
        tensors = _from_zip(data) if data.startswith(b"PK") else _from_stream(data)
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error) if isinstance(error, _Refused) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:200]
        raise UserError(f"{path}: not a file of tensors that can be read safely ({reason}); {advice}") from error
    return tensors, data


def _from_zip(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of the layout that torch has written since 1.6: a zip archive, one file a storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        described = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(described) != 1 or any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused("it is another kind of zip archive")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise _Refused("its byte order is not that of this machine")
        value = _Stream(archive.read(described[0])).read()
        return _tensors(value, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def _from_stream(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of the older layout: five values one after the other, and then the storages."""
    stream = _Stream(data)
    magic, _, system, value, keys = [_next(stream) for _ in range(5)]
    if magic != MAGIC or not system.get("little_endian"):
        raise _Refused("it does not begin as torch's files do")
    sizes = {found.storage.key: found.storage for found in _described(value).values()}
    places, place = {}, stream.place
    for key in keys:
        (count,) = struct.unpack("<q", data[place : place + 8])
        if key not in sizes or count != sizes[key].count:
            raise _Refused("a storage has not the size that its tensor says")
        length = count * sizes[key].dtype.itemsize
        places[key] = slice(place + 8, place + 8 + length)
        place += 8 + length
    return _tensors(value, lambda storage: data[places[storage.key]])


def _next(stream: _Stream) -> Any:
    stream.stack, stream.memory = [], {}
    return stream.read()


def _described(value: Any) -> dict[str, _Described]:
    """The tensors of a dictionary, or of the one called `state_dict` in it."""
    if type(value) is dict and type(value.get("state_dict")) is dict:
        value = value["state_dict"]
    if type(value) is not dict or not all(isinstance(found, _Described) for found in value.values()):
        raise _Refused("it is no dictionary of tensors")
    return value


def _tensors(value: Any, bytes_of: Callable[[_Storage], bytes]) -> dict[str, torch.Tensor]:
    """The tensors that a value describes, each in memory of its own."""
    found = {}
    for name, tensor in _described(value).items():
        storage = tensor.storage
        data = bytes_of(storage)
        if len(data) != storage.count * storage.dtype.itemsize:
            raise _Refused("a storage has not the size that its tensor says")
        numbers = 1
        for size in tensor.size:
            numbers *= size
        if numbers > storage.count or min((tensor.offset, *tensor.size, *tensor.stride)) < 0:
            raise _Refused("a tensor is larger than its storage")
        values = torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
        found[name] = values.as_strided(tensor.size, tensor.stride, tensor.offset).clone()
    return found
