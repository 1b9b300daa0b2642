"""Results that are made in parts by any number of processes, and that a killed run goes on with.

    .state/STAGE/IDENTITY/lock                                   held by the run that works here, or by jobs that
                          share-0-of-8.lock                      make a share each
                          made_by.json                           how the parts were made: device and threads
                          train/pass-000/codes-00000.npy         a part, at its place in the folder that is published
                          train/pass-000/codes-00000.npy.json    its size and its hashes

The folder is outside every DVC output, since DVC deletes a stage's outputs before it runs the stage. IDENTITY is a hash
of everything that decides the parts: parameters, code, and the artifacts that they are made from.

A part is written under another name and put in place by one rename, and then its record in the same way. What is in
place with a record is whole. Each process makes parts of its own. At the end the main process links all parts into the
folder that is published, which copies no data. The entry point deletes this folder when it has seen that nothing was
edited meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tessera.artifacts.arrays import ArrayWriter
from tessera.artifacts.files import json_text, replacing, write_text
from tessera.artifacts.manifests import file_entry
from tessera.console import say, waiting
from tessera.distributed import same_on_all_processes, world
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.fingerprint import fingerprint
from tessera.launch.shares import Share
from tessera.locks import Busy, acquire, holder, note_result
from tessera.parameters import Params
from tessera.snapshot import require_unedited
from tessera.training.running import LOCK, MADE_BY, SHARE_LOCKS, share_holder, states_of

if TYPE_CHECKING:
    from accelerate import Accelerator

NO_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # file systems without hard links


def identity(module: str, uses: tuple[str, ...], params: Params, parents: dict[str, str]) -> str:
    """The name of a folder of parts: a hash of what decides their contents.

    Args:
        module: the stage's entry point, a dotted name.
        uses: the sections of params.yaml that the stage uses.
        parents: the identity of each artifact that the parts are made from.
    """
    decides = fingerprint(module, uses, params) | {"parents": parents}
    require_unedited()
    return hashlib.sha256(json_text(decides).encode()).hexdigest()[:32]


class PartFolder:
    """The parts of a result that is being made. Every process of a run enters it; one run at a time uses it.

    After a clean exit the entry point deletes the folder, unless the code was edited meanwhile. After an exception it
    stays, and so do its parts. Processes that make a share each use it together, and it stays.

    Args:
        stage: the name of the stage.
        identity: see `identity`.
        accelerator: the processes of this run.
        share: the parts that this process makes, if others make the rest by themselves.

    Attributes:
        left: what all processes of this run have to make, once `missing` was called.
    """

    def __init__(self, stage: str, identity: str, accelerator: Accelerator, share: Share | None = None) -> None:
        self.stage, self.folder, self.accelerator = stage, states_of(stage) / identity, accelerator
        self.share = share
        self.main = accelerator.is_main_process
        self.left: list[str] = []
        self._lock: Any = None

    def __enter__(self) -> PartFolder:
        """Lock the folder until `__exit__`, without waiting. Several processes of one run wait for one another here.

        Raises:
            Busy: another run makes the same parts.
        """
        if self.main:
            work, own = f"is making these parts ({self.folder})", self.folder / LOCK
            self._lock = acquire(own if self.share is None else self._lock_of(self.share), work)
            try:
                if other := share_holder(self.folder) if self.share is None else holder(own):
                    raise Busy(f"{other.process} {work}; wait for it, or stop it{other.advice}")
                if not (self.folder / MADE_BY).exists():
                    self._note_how()
            except BaseException:  # another process, or a full disk
                self._lock.close()
                raise
        self.accelerator.wait_for_everyone()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._lock:
            if kind is None and self.share is None:
                note_result(self.folder, spent=True)
            self._lock.close()

    def _lock_of(self, share: Share) -> Path:
        return self.folder / SHARE_LOCKS.replace("*", f"{share.number}-of-{share.count}")

    def _note_how(self) -> None:
        """Record how parts are made now, and say so if the parts in place were made in another way."""
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        now, path = json_text({"device": name, "threads": torch.get_num_threads()}), self.folder / MADE_BY
        if path.is_file() and path.read_bytes() != now.encode():
            say(
                "note: the parts in place were made with another number of threads, or on another device; by rounding, "
                "the result may differ from that of a run without interruption"
            )
        write_text(path, now)

    def missing(self, names: Sequence[str]) -> list[str]:
        """The parts that this process has to make. The parts that are not in place are dealt out in turn.

        Every process must call it, with the same names. Parts in place are compared with their hashes, and a damaged
        one is made again. A share is of all parts, in place or not.
        """
        if self.share:
            names = names[self.share.number :: self.share.count]
        with waiting(f"check of {self.folder}"):
            there = [int(self.main and self._intact(name)) for name in names]
        found = torch.tensor(there, device=self.accelerator.device)
        same_on_all_processes([found])
        if found.any():
            say(f"going on after {int(found.sum())} of {len(names)} parts ({self.folder})")
        self.left = [name for name, known in zip(names, found.tolist(), strict=True) if not known]
        if self.main and self.left:
            self._note_how()
        rank, size = world()
        return self.left[rank::size]

    def path(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / name

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _intact(self, name: str) -> bool:
        """Whether a part and its record are there, and the part has the record's hashes.

        If both are there but differ, a warning is printed.
        """
        path = self.path(name)
        if not (path.is_file() and self._record(name).is_file()):
            return False
        try:
            if read_json(self._record(name)) == file_entry(path):
                return True
        except UserError:  # the record is no JSON
            pass
        say(f"warning: {path}: damaged (it differs from its record); it is made again")
        return False

    @contextmanager
    def writing(self, name: str, item_shape: tuple[int, ...], dtype: np.dtype | type) -> Iterator[ArrayWriter]:
        """A writer for the rows of one part, which is put in place at the end, and not after an exception.

        Args:
            name: the part's path inside the folder that is published.
            item_shape, dtype: see `ArrayWriter`.
        """
        path = self.path(name)
        with replacing(path) as temporary, ArrayWriter(temporary, item_shape, dtype) as writer:
            yield writer
        write_text(self._record(name), json.dumps(file_entry(path)))

    def wait(self, names: Sequence[str]) -> None:
        """Wait until every process has made its parts.

        Raises:
            UserError: not all parts can be seen here.
        """
        self.accelerator.wait_for_everyone()
        absent = [name for name in names if self.main and not self._record(name).is_file()]
        if absent:
            raise UserError(
                f"{self.folder}: {len(absent)} of {len(names)} parts that other processes made are not here; the "
                "machines of one run need one shared working folder; run again on such a folder"
            )

    def link(self, names: Sequence[str], staging: Path) -> None:
        """Put all parts into a folder that is about to be published, by hard links; by copies if there are none."""
        for name in names:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path(name), target)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                shutil.copyfile(self.path(name), target)
