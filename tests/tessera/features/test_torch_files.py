"""Files of tensors are read, and nothing that they ask for is run."""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tessera.errors import UserError
from tessera.features.networks.torch_files import read_torch_file
from tessera.features.networks.torch_stream import DTYPES

TENSORS = {
    "layer.weight": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "layer.bias": torch.ones(3, dtype=torch.float16),
    "steps": torch.tensor(7),
    "half": torch.arange(5.0)[3:],
    "empty": torch.zeros(0, 2),
    "marks": torch.tensor([True, False]),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_both_layouts_are_read_as_torch_wrote_them(tmp_path: Path, zipped: bool, wrapped: bool) -> None:
    state = collections.OrderedDict(TENSORS | {"trained": torch.nn.Parameter(torch.zeros(2))})
    state._metadata = {"": {"version": 2}}  # as a module's state has it
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": state} if wrapped else state, file, _use_new_zipfile_serialization=zipped)
    found, data = read_torch_file(file, "advice")
    assert data == file.read_bytes() and list(found) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert type(found[name]) is torch.Tensor and not found[name].requires_grad


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
def test_every_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"a": torch.tensor([0, 1]).to(dtype)}, tmp_path / "a.pth")
    assert read_torch_file(tmp_path / "a.pth", "")[0]["a"].tolist() == torch.tensor([0, 1]).to(dtype).tolist()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


def hostile(mark: Path) -> list[object]:
    tensor = torch.zeros(2)
    calls = [(Path.touch, (mark,)), (os.system, (f"touch {mark}",)), (eval, (f"open({str(mark)!r}, 'w')",))]
    return [value for call in calls for value in (Bomb(call), {"a": tensor, "b": Bomb(call)}, {"a": [Bomb(call)]})]


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_asks_for_a_function_is_refused(tmp_path: Path, place: int, zipped: bool, protocol: int) -> None:
    file = tmp_path / "bomb.pth"
    torch.save(hostile(tmp_path / "mark")[place], file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"cannot|can be read safely .*; do so") as caught:
        read_torch_file(file, "do so")
    assert "\n" not in str(caught.value) and not (tmp_path / "mark").exists()


def test_names_from_torch_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    for value in (torch.nn.Linear(1, 1), {"a": torch.Size([1])}, {"a": torch.float32}, [torch.zeros(1)], {"a": 1}):
        torch.save(value, tmp_path / "a.pth")
        with pytest.raises(UserError, match="not a file of tensors"):
            read_torch_file(tmp_path / "a.pth", "")


def test_a_bare_pickle_and_damage_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    for zipped in (True, False):
        torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
        whole = file.read_bytes()
        for cut in range(0, len(whole) - 1, 97):
            file.write_bytes(whole[:cut])
            with pytest.raises(UserError) as caught:
                read_torch_file(file, "")
            assert "\n" not in str(caught.value)
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError):
        read_torch_file(file, "")
    with pytest.raises(UserError, match="no such file; do so"):
        read_torch_file(tmp_path / "absent.pth", "do so")


def described(size: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x02") -> bytes:
    """A zip of one tensor of two float32 values, whose size, strides, offset and count are written by hand."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89NtR"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
        archive.writestr("a/data/0", struct.pack("<2f", 1.0, 2.0))
    return data.getvalue()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(described(b"K\x02\x85", b"K\x01\x85"))
    assert read_torch_file(file, "")[0]["a"].tolist() == [1.0, 2.0]
    many, negative = b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\xff\x85"
    for size, stride, offset in (
        (many, b"K\x00\x85", b"K\x00"),  # one value many times over
        (b"K\x02\x85", b"K\x02\x85", b"K\x00"),
        (b"K\x02\x85", b"K\x01\x85", b"K\x01"),
        (b"K\x02\x85", negative, b"K\x01"),
        (b"K\x01\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"),
    ):
        file.write_bytes(described(size, stride, offset))
        with pytest.raises(UserError, match="not a file of tensors"):
            read_torch_file(file, "")


NAN, MINUS = b"G" + struct.pack(">d", math.nan), b"J\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "numbers",
    [
        {"size": NAN + b"\x85"},  # with which no sum of sizes is above any bound
        {"size": b"K\x02" + MINUS + b"\x86", "stride": b"K\x01K\x01\x86"},
        {"size": b"\x88\x85"},
        {"size": b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85"},
        {"size": b"(" + 65 * b"K\x01" + b"t"},
        {"stride": NAN + b"\x85"},
        {"stride": MINUS + b"\x85"},
        {"offset": MINUS},
        {"offset": NAN},
        {"count": MINUS},
        {"count": NAN},
    ],
)
def test_sizes_that_would_switch_off_the_bound_of_memory_are_refused(tmp_path: Path, numbers: dict[str, bytes]) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(described(**{"size": b"K\x02\x85", "stride": b"K\x01\x85"} | numbers))
    with pytest.raises(UserError, match="not made of whole numbers, 0 or more"):
        read_torch_file(file, "")


def test_names_of_storages_in_the_older_layout_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    name = re.search(rb"\x80\x02\]q\x00X.{4}(\d+)q\x01a\.", whole, re.DOTALL)
    file.write_bytes(whole[: name.start()] + b"\x80\x02](" + NESTED + b"e." + whole[name.end() :])
    with pytest.raises(UserError, match="a storage has a name that is no text"):
        read_torch_file(file, "")


def shared(names: int, values: int) -> bytes:
    """A zip of so many tensors, each of them all values of one storage."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ%btQ"
    storage = storage.replace(b"%b", struct.pack("<i", values))
    size = b"J" + struct.pack("<i", values) + b"\x85"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"K\x01\x85\x89NtR"
    first = b"X\x04\x00\x00\x000000" + tensor + b"q\x01s"
    others = b"".join(b"X\x04\x00\x00\x00" + f"{number:04}".encode() + b"h\x01s" for number in range(1, names))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + first + others + b".")
        archive.writestr("a/data/0", bytes(4 * values))
    return data.getvalue()


def test_tensors_that_share_a_storage_may_not_take_many_times_the_files_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(shared(3, 10_000))
    found = read_torch_file(file, "")[0]
    assert len(found) == 3 and len({tensor.data_ptr() for tensor in found.values()}) == 3
    file.write_bytes(shared(5000, 10_000))
    with pytest.raises(UserError, match="its tensors are larger than the file"):
        read_torch_file(file, "")


# A value whose text or hash takes 2**20 operations. With 60 instead of 20 it would never end.
NESTED = b")q\x00" + 20 * b"h\x00\x86q\x00"
STORAGE, DICTIONARY = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (b"(" * 300_000 + b"t" * 300_000, "no dictionary of tensors"),  # which took hours where marks were searched for
        (b"N" * (2**22 + 1), "more than 4194304 operations"),
        (b"t.", "a mark that it has not set"),
        (b"N(\x85.", "it takes more values than it has"),
        (STORAGE + NESTED + b"NK\x01tQ", "a storage of a kind that is not read"),
        (STORAGE + b"X\x01\x00\x00\x000N](" + 9 * b"N" + b"etQ", "whole numbers, 0 or more"),
        (b"](" + 9 * b"N" + b"eQ", "a storage of a kind that is not read"),
        (b"](" + 2000 * b"X\x01\x00\x00\x00aN\x86" + b"eq\x01" + 3000 * (DICTIONARY + b"h\x01\x85R"), "operations"),
        (DICTIONARY + b"((NNNtt\x85R", "not made of pairs"),
    ],
)
def test_a_description_is_followed_in_bounded_time_and_memory(tmp_path: Path, description: bytes, reason: str) -> None:
    file, data = tmp_path / "a.pth", io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a/data.pkl", description + b".")
    file.write_bytes(data.getvalue())
    with pytest.raises(UserError, match=reason):
        read_torch_file(file, "")
