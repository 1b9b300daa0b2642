"""Saved states of a training, from which it goes on after an interruption.

They lie in `.state/STAGE/FINGERPRINT/`. This is outside every DVC output, since DVC deletes a stage's outputs
before it runs the stage. The fingerprint is a hash of the parameters and the inputs. A training with other parameters
has another fingerprint and never goes on from these weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import clear_unfinished, publishing
from tessera.console import say
from tessera.errors import UserError
from tessera.locks import acquire
from tessera.project import ROOT, loaded, syntax
from tessera.snapshot import require_unedited
from tessera.training.running import END, FINISHED, LOCK, STEP, states_of

TENSORS, VALUES = "state.safetensors", "state.json"  # the files of a state
VALUES_BYTES = 2**31  # the largest state.json that is read: it has every row of train.csv, of which there may be many


def fingerprint(stage: str, params: dict[str, Any], parents: dict[str, str]) -> str:
    """The name of a run's folder of states: a hash of what decides the run's results, besides code.

    Args:
        params: parameters as JSON values.
        parents: the identity of each input.
    """
    return hashlib.sha256(json_text({"stage": stage, "params": params, "parents": parents}).encode()).hexdigest()[:32]


def code_hash() -> str:
    """A hash of what the project's modules do that this process has imported.

    Comments, docstrings and layout do not count. The hash is saved beside each state; it is no part of the
    fingerprint, so that a training can go on under changed code.
    """
    digest = hashlib.sha256()
    for path in loaded():
        # A file that is gone meanwhile is an edit, of which `require_unedited` tells.
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        try:
            content = syntax(text)
        except SyntaxError:  # the file is being edited; what this process has imported was right
            content = text
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


class StateFolder:
    """The saved states of one run. While it is entered, no other process can run the same training.

    A state of a training that goes on is a folder `step-STEP`. The result is a folder `finished-STEP-CODE`, named by
    the code that made it, so that a training by edited code leaves it alone.
    """

    def __init__(self, stage: str, identity: str, exclusive: bool) -> None:
        """Find the folder of a run.

        Args:
            identity: the run's fingerprint.
            exclusive: whether this process saves states and locks the folder. One process of a run does; its other
                processes only read.
        """
        self.stage, self.folder = stage, states_of(stage) / identity
        self.exclusive = exclusive
        self.code = code_hash()  # computed now, because files that are edited later are not what this process runs
        require_unedited()
        self._damaged: set[Path] = set()  # states that were found to be damaged, and do not count as kept
        self._lock: Any = None

    def __enter__(self) -> StateFolder:
        """Lock the folder, and delete what a killed run left half written.

        Raises:
            Busy: another process holds the lock.
        """
        if self.exclusive:
            self._lock = acquire(self.folder / LOCK, f"is running this training ({self.folder})")
            clear_unfinished(self.folder)
            (self.folder / END).unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock:
            self._lock.close()

    def end_requested(self) -> bool:
        """Whether a user has asked this training to end (`request_end`)."""
        return (self.folder / END).exists()

    def save(self, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any], keep: int) -> None:
        """Save a state. Older ones are deleted once the new one is read back and verified.

        Args:
            step: how many steps have been taken.
            values: JSON values.
            keep: how many states stay, the new one among them.
        """
        target = self.folder / f"{STEP}{step:09d}"
        self._write(target, step, tensors, values)
        self._damaged.discard(target)
        kept = [path for path in _newest_first(self.folder, STEP) if path not in self._damaged]
        self._delete(STEP, kept[:keep])

    def finish(self, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any], keep: int) -> None:
        """Save the result. The states that led to it, and older results by other code, are then deleted.

        Args:
            step: how many steps have been taken.
            values: JSON values.
            keep: how many results stay, the new one among them.
        """
        target = self.result(step)
        self._write(target, step, tensors, values)
        others = sorted(
            (path for path in _newest_first(self.folder, FINISHED) if path != target), key=lambda p: p.stat().st_mtime
        )
        self._delete(FINISHED, [target, *others[::-1][: keep - 1]])
        self._delete(STEP, [])

    def result(self, step: int) -> Path:
        """Where the result of this code after some steps lies."""
        return self.folder / f"{FINISHED}{step:09d}-{self.code[:12]}"

    def _write(self, target: Path, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        with publishing(target, "state", {}) as staging:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, staging / TENSORS)
            values = {**values, "step": step, "code": self.code}
            (staging / VALUES).write_text(json.dumps(values), encoding="utf-8")
        read_manifest(target, "state")

    def _delete(self, kind: str, kept: list[Path]) -> None:
        for path in set(_newest_first(self.folder, kind)) - set(kept):
            shutil.rmtree(path)

    def usable(self) -> list[Path]:
        """The states that this code may go on from, the best first: its own result, and the states, newest first."""
        results = _newest_first(self.folder, FINISHED)
        own = [path for path in results if path.name.endswith(f"-{self.code[:12]}")]
        return [*own, *_newest_first(self.folder, STEP)]

    def latest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and values of this code's result, or else of the newest intact state; None if there is neither.

        A damaged state is reported and passed over, and deleted when the next one is saved. One that cannot be read now
        is not passed over: it may be whole, and a training that begins anew would delete it. A note says if another
        code saved the state, or if there is a result of another code. Such a result is not used, since it would be
        published as if this code had made it.
        """
        usable, results = self.usable(), _newest_first(self.folder, FINISHED)
        for path in usable:
            try:
                tensors, values = read_state(path)
            except (UserError, SafetensorError, ValueError) as error:
                _refuse_unreadable(path, error)
                self._damaged.add(path)
                where = "" if str(error).startswith(str(path)) else f"{path}: "
                say(f"warning: {where}{error}; this saved state is passed over")
                continue
            if values["code"] != self.code:
                say(f"note: the code has changed since {path} was saved; going on from it")
            return tensors, values
        if usable:
            say(f"warning: {self.folder}: no saved state is intact, so the training begins anew, at step 0")
        if results and not set(results) & set(usable):
            say(
                f"note: the code has changed since {results[0]} was finished, which stays there; starting anew "
                "(`python -m tessera states` says more)"
            )
        return None


def _refuse_unreadable(path: Path, error: Exception) -> None:
    """Stop where the disk, a network or missing rights keep a state from being read.

    Raises:
        UserError: so it is.
    """
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
        state = "/".join(path.parts[-3:])
        raise UserError(
            f"{path}: cannot be read now ({cause.strerror}), and stays; mend it and run again, or go on without this "
            f"state by `python -m tessera states --delete {state}`"
        ) from error


def _newest_first(folder: Path, kind: str) -> list[Path]:
    """The saved states of a kind, `STEP` or `FINISHED`."""
    return sorted(folder.glob(f"{kind}*"), reverse=True)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and values of a saved state.

    The tensors are views of the mapped file, which is hashed first. Bytes in memory, as `read_model` has them, would
    take twice the state for each process of a run that goes on, and so more memory than a run that begins.

    Raises:
        UserError, SafetensorError, ValueError: it is damaged, or was changed while it was read.
    """
    manifest = read_manifest(path, "state", contents=False)
    values = manifest.read_json(VALUES, finite=False, limit=VALUES_BYTES)
    if missing := {"step", "code", "progress"} - values.keys():
        raise UserError(f"{VALUES} lacks {', '.join(sorted(missing))}")
    file = manifest.path(TENSORS)
    before = _stamp(file)
    manifest.check(TENSORS)
    tensors = load_file(file)
    if _stamp(file) != before:
        raise UserError(f"{file}: changed while it was being read")
    return tensors, values


def _stamp(file: Path) -> tuple[int, ...]:
    """What differs once a file was replaced or written to."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
