"""Reads the tensors of a .pth file without running anything that the file says (`torch_stream`).

Both layouts are read: the zip archive, and the one before torch 1.6.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tessera.documents import read_bytes
from tessera.errors import UserError
from tessera.features.networks.torch_stream import Described, Refused, Storage, Stream

LARGEST_FILE = 2**31  # bytes; VGG-16 with its classifier has 528 MB
MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of the older layout
COPIES = 4  # of the file's size: how much memory all tensors may take together, since several may share a storage


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
        reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:200]
        raise UserError(f"{path}: not a file of tensors that can be read safely ({reason}); {advice}") from error
    return tensors, data


def _from_zip(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of the layout that torch has written since 1.6: a zip archive, one file a storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        described = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(described) != 1 or any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise Refused("it is another kind of zip archive")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("its byte order is not that of this machine")
        value = Stream(archive.read(described[0])).read()
        return _tensors(value, lambda storage: archive.read(f"{folder}data/{storage.key}"), len(data))


def _from_stream(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of the older layout: five values one after the other, and then the storages."""
    stream = Stream(data)
    magic, _, system, value, keys = [_next(stream) for _ in range(5)]
    if magic != MAGIC or not system.get("little_endian"):
        raise Refused("it does not begin as torch's files do")
    sizes = {found.storage.key: found.storage for found in _described(value).values()}
    places, place = {}, stream.place
    for key in keys:
        if type(key) is not str:  # it may be one that takes for ever to look up
            raise Refused("a storage has a name that is no text")
        (count,) = struct.unpack("<q", data[place : place + 8])
        if key not in sizes or count != sizes[key].count:
            raise Refused("a storage has not the size that its tensor says")
        length = count * sizes[key].dtype.itemsize
        places[key] = slice(place + 8, place + 8 + length)
        place += 8 + length
    return _tensors(value, lambda storage: data[places[storage.key]], len(data))


def _next(stream: Stream) -> Any:
    stream.stack, stream.marks, stream.memory = [], [], {}
    return stream.read()


def _described(value: Any) -> dict[str, Described]:
    """The tensors of a dictionary, or of the one called `state_dict` in it."""
    if type(value) is dict and type(value.get("state_dict")) is dict:
        value = value["state_dict"]
    if type(value) is not dict or not all(isinstance(found, Described) for found in value.values()):
        raise Refused("it is no dictionary of tensors")
    return value


def _tensors(value: Any, bytes_of: Callable[[Storage], bytes], size: int) -> dict[str, torch.Tensor]:
    """The tensors that a value describes, each in memory of its own.

    Args:
        bytes_of: reads a storage.
        size: of the file, in bytes. Tensors that need much more memory are refused before they take it.
    """
    described = _described(value)
    storages = {tensor.storage for tensor in described.values()}
    needed = sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in described.values())
    if sum(storage.count * storage.dtype.itemsize for storage in storages) > size or needed > COPIES * size:
        raise Refused("its tensors are larger than the file")
    values = {storage: _values(storage, bytes_of(storage)) for storage in storages}
    return {name: _view(tensor, values[tensor.storage]) for name, tensor in described.items()}


def _values(storage: Storage, data: bytes) -> torch.Tensor:
    """The values of a storage (count,)."""
    if len(data) != storage.count * storage.dtype.itemsize:
        raise Refused("a storage has not the size that its tensor says")
    return torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


def _view(tensor: Described, values: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor's own values, of those of its storage."""
    if math.prod(tensor.size) > len(values):
        raise Refused("a tensor is larger than its storage")
    return values.as_strided(tensor.size, tensor.stride, tensor.offset).clone()
