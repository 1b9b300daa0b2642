"""Results that are made in parts: what is in place is whole, is not made again, and belongs to this very run."""

from __future__ import annotations

import errno
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessera import locks
from tessera.artifacts import parts
from tessera.artifacts.arrays import array_parts
from tessera.artifacts.manifests import BLOCK
from tessera.artifacts.parts import PartFolder, identity
from tessera.errors import UserError
from tessera.launch.shares import Share, parsed
from tessera.locks import Busy
from tessera.parameters import Params

ROWS = np.arange(44, dtype=np.uint16).reshape(22, 2)
PARTS = array_parts("train", "codes", 22, 4)
NAMES = [part.name for part in PARTS]


@pytest.fixture(autouse=True)
def here(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)


def folder_of(main: bool = True, share: Share | None = None) -> PartFolder:
    processes = SimpleNamespace(
        is_main_process=main, device=torch.device("cpu"), wait_for_everyone=lambda: None, process_index=0
    )
    return PartFolder("extract_codes", "0" * 32, processes, share)


def make(folder: PartFolder, names: list[str]) -> None:
    for part in PARTS:
        if part.name in names:
            with folder.writing(part.name, (2,), np.uint16) as writer:
                writer.append(ROWS[part.rows])


def killed_after(count: int) -> Path:
    """The folder that a run leaves which is killed while it writes a part, after a number of whole parts."""
    with pytest.raises(RuntimeError, match="killed"), folder_of() as folder:
        make(folder, NAMES[:count])
        with folder.writing(NAMES[count], (2,), np.uint16) as writer:
            writer.append(ROWS[:1])
            raise RuntimeError("killed")
    return folder.folder


def test_a_run_goes_on_after_the_last_part_in_place(capsys):
    where = killed_after(4)
    assert sorted(path.name for path in where.glob("train/*.npy")) == [Path(name).name for name in NAMES[:4]]
    assert not list(where.rglob(".*")), "nothing unfinished is left"
    before = {name: (where / name).stat().st_mtime_ns for name in NAMES[:4]}
    with folder_of() as folder:
        assert folder.missing(NAMES) == NAMES[4:]
        make(folder, NAMES[4:])
        folder.wait(NAMES)
        folder.link(NAMES, Path("published"))
        assert {name: (where / name).stat().st_mtime_ns for name in NAMES[:4]} == before
    assert capsys.readouterr().err == f"going on after 4 of 6 parts ({where})\n"
    found = np.concatenate([np.load(Path("published") / name) for name in NAMES])
    assert np.array_equal(found, ROWS)


def test_what_a_kill_left_half_written_is_deleted():
    where = killed_after(1)
    for name in (".codes-00001.npy.new-89abcdef", ".codes-00000.npy.json.new-0123abcd"):
        (where / "train" / name).write_bytes(b"half")
    (where / NAMES[1]).write_bytes(b"in place, but killed before its record was")
    with folder_of() as folder:
        assert folder.missing(NAMES) == NAMES[1:]
        make(folder, NAMES)
        assert not list(where.rglob(".*"))


def test_parts_of_several_blocks_are_known_again():
    rows = np.zeros((300, 5000), np.uint8)
    assert rows.nbytes > BLOCK
    with pytest.raises(RuntimeError), folder_of() as folder:
        with folder.writing("large.npy", (5000,), np.uint8) as writer:
            writer.append(rows)
        raise RuntimeError
    with folder_of() as folder:
        assert folder.missing(["large.npy"]) == []


def test_a_part_that_another_process_is_writing_is_left_alone():
    with folder_of() as folder, folder.writing(NAMES[0], (2,), np.uint16) as writer:
        writer.append(ROWS[:4])
        make(folder, NAMES[1:])
    assert np.array_equal(np.load(folder.path(NAMES[0])), ROWS[:4])


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: flip(path.with_name(path.name + ".json")),
        lambda path: path.with_name(path.name + ".json").write_bytes(b"{}"),
    ],
)
def test_a_damaged_part_is_said_and_made_again(damage: Callable[[Path], Any], capsys):
    where = killed_after(3)
    damage(where / NAMES[1])
    with folder_of() as folder:
        assert folder.missing(NAMES) == [NAMES[1], *NAMES[3:]]
        make(folder, NAMES)
    assert f"warning: {where / NAMES[1]}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_processes_divide_what_is_missing_among_them(monkeypatch, size):
    killed_after(2)
    dealt = []
    for rank in range(size):
        monkeypatch.setattr(parts, "world", lambda rank=rank: (rank, size))
        with pytest.raises(RuntimeError), folder_of() as folder:
            dealt.append(folder.missing(NAMES))
            raise RuntimeError
    assert sorted(name for names in dealt for name in names) == NAMES[2:]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_without_hard_links_parts_are_copied_and_other_errors_are_not_hidden(monkeypatch):
    def refused(number: int) -> Callable[..., None]:
        def link(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return link

    with folder_of() as folder:
        make(folder, NAMES)
        folder.link(NAMES[:1], Path("linked"))
        monkeypatch.setattr(os, "link", refused(errno.EXDEV))
        folder.link(NAMES[:1], Path("copied"))
        monkeypatch.setattr(os, "link", refused(errno.ENOSPC))
        with pytest.raises(OSError, match="space"):
            folder.link(NAMES[:1], Path("neither"))
        inodes = [path.stat().st_ino for path in (folder.path(NAMES[0]), Path("linked") / NAMES[0])]
        assert inodes[0] == inodes[1]
    assert (Path("linked") / NAMES[0]).read_bytes() == (Path("copied") / NAMES[0]).read_bytes()


def test_a_second_run_is_refused_while_the_first_lasts():
    with folder_of() as first:
        with pytest.raises(UserError, match=f"process {os.getpid()} is making these parts"):
            folder_of().__enter__()
        assert first.folder.is_dir()
    folder_of().__enter__().__exit__(None)


def test_parts_that_other_machines_keep_to_themselves_are_missed():
    with pytest.raises(UserError, match=r"5 of 6 parts .* one shared working folder"), folder_of() as folder:
        make(folder, NAMES[:1])
        folder.wait(NAMES)


def test_parts_made_with_other_threads_are_said(monkeypatch, capsys):
    killed_after(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with folder_of() as folder:
        assert folder.missing(NAMES) == NAMES[1:]
    assert "note: the parts in place were made with another number of threads" in capsys.readouterr().err


def test_whoever_only_puts_parts_together_made_none_of_them_in_another_way(monkeypatch, capsys):
    with folder_of(share=Share(0, 1)) as folder:
        make(folder, folder.missing(NAMES))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with folder_of() as folder:
        assert folder.missing(NAMES) == []
    assert "note: " not in capsys.readouterr().err


def test_the_identity_is_of_what_decides_the_parts(params: Callable[..., Params]):
    def of(changes: dict | None = None, prepared: str = "p") -> str:
        return identity("stage1_vqvae.extract", ("extract_codes",), params(changes), {"prepared": prepared})

    plain = of()
    assert plain == of() == of({"sampling.seed": 7}) == of({"runtime.threads": 3}) and len(plain) == 32
    assert plain not in (of(prepared="q"), of({"extract_codes.horizontal_flip": True}))


def test_parts_are_deleted_once_nothing_was_edited_and_kept_otherwise(monkeypatch):
    with locks.one_run("stage1_vqvae.extract") as kept:
        with folder_of() as folder:
            make(folder, folder.missing(NAMES))
        assert locks.noted(kept) == (folder.folder, True)
        assert folder.folder.exists()
        monkeypatch.setenv("RANK", "1")
        locks.delete_spent(kept)
        assert folder.folder.exists(), "the first process deletes them, after its look at the code"
        monkeypatch.delenv("RANK")
        locks.delete_spent(kept)
        assert not folder.folder.exists()


def test_shares_together_are_all_parts_and_a_run_without_one_puts_them_together(capsys):
    made = []
    for number in range(3):
        with folder_of(share=Share(number, 3)) as folder:
            wanted = folder.missing(NAMES)
            assert wanted == NAMES[number::3]
            make(folder, wanted)
            made += wanted
    assert sorted(made) == sorted(NAMES)
    with folder_of() as folder:
        assert folder.missing(NAMES) == []
        assert all(folder.path(name).is_file() for name in NAMES)


def test_a_share_that_was_stopped_makes_the_rest_of_its_own_parts():
    with folder_of(share=Share(1, 2)) as folder:
        make(folder, folder.missing(NAMES)[:1])
    with folder_of(share=Share(1, 2)) as folder:
        assert folder.missing(NAMES) == NAMES[1::2][1:]


def test_the_same_share_and_a_run_of_all_are_refused_meanwhile():
    with folder_of(share=Share(0, 2)):
        for other in (Share(0, 2), None):
            with pytest.raises(Busy, match="is making these parts"), folder_of(share=other):
                pass
        with folder_of(share=Share(1, 2)):
            pass
    with folder_of(), pytest.raises(Busy, match="is making these parts"), folder_of(share=Share(0, 2)):
        pass


def test_without_locks_shares_that_ended_keep_no_run_out_and_one_that_was_killed_elsewhere_is_named(monkeypatch):
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", without)
    monkeypatch.setattr(locks.platform, "node", lambda: "node7")
    for number in range(2):
        with folder_of(share=Share(number, 2)) as folder:
            make(folder, folder.missing(NAMES))
    monkeypatch.setattr(locks.platform, "node", lambda: "node1")
    left = folder.folder / "share-1-of-2.lock"
    left.write_text("12 node7")
    with (
        pytest.raises(Busy, match=rf"^process 12 on node7 is making .* delete {left}: "),
        folder_of(),
    ):
        pass
    left.unlink()
    with folder_of() as folder:
        assert folder.missing(NAMES) == []


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/2/3", ""])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="expected I/N"):
        parsed(text)
