"""Saved states of a training, from which it goes on after an interruption.

They lie in `.state/<stage>/<fingerprint>/`. This is outside every DVC output, since DVC deletes a stage's outputs
before it runs the stage. The fingerprint is a hash of the parameters and the inputs. A training with other parameters
has another fingerprint and never goes on from these weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tessera.artifacts.files import json_text
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import clear_unfinished, publishing
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.project import ROOT, loaded, syntax
from tessera.training.running import END, LOCK, lock_now, states_of

KEPT = 2  # states that are kept: the newest, and an older one in case the newest is damaged


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
        text = path.read_text(encoding="utf-8")
        try:
            content = syntax(text)
        except SyntaxError:  # the file is being edited; what this process has imported was right
            content = text
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()


class StateFolder:
    """The saved states of one run. While it is entered, no other process can run the same stage with it."""

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
        self._lock: Any = None

    def __enter__(self) -> StateFolder:
        """Lock the folder, and delete what a killed run left half written.

        Raises:
            UserError: another process holds the lock.
        """
        if not self.exclusive:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("a+")
        try:
            lock_now(self._lock)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise UserError(
                f"{self.folder}: process {holder} is already running this very stage with these parameters; "
                "wait for it, or stop it"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        clear_unfinished(self.folder)
        (self.folder / END).unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock:
            self._lock.close()

    def end_requested(self) -> bool:
        """Whether a user has asked this training to end (`request_end`)."""
        return (self.folder / END).exists()

    def _states(self) -> list[Path]:
        """Saved states, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def save(self, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Save a state. Older ones than the newest `KEPT` are deleted once the new one is read back and verified.

        Args:
            step: how many steps have been taken.
            values: JSON values.
        """
        target = self.folder / f"step-{step:09d}"
        with publishing(target, "state", {}) as staging:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, staging / "state.safetensors")
            values = {**values, "step": step, "code": self.code}
            (staging / "state.json").write_text(json.dumps(values), encoding="utf-8")
        read_manifest(target, "state")
        # A state of a later step was damaged, or this run would have gone on from it. It does not count as kept.
        kept = [path for path in self._states() if path.name <= target.name][:KEPT]
        for path in set(self._states()) - set(kept):
            shutil.rmtree(path)

    def latest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and values of the newest intact state, or None. A damaged state is reported and passed over.

        If the code does something else than when the state was saved, a note says so, and the state is used unless
        the run is finished. The result of a finished run would be published as if the changed code had made it.
        """
        for path in self._states():
            try:
                read_manifest(path, "state")
                values = read_json(path / "state.json", finite=False)
                tensors = load_file(path / "state.safetensors")
            except (UserError, SafetensorError, ValueError) as error:
                print(f"warning: {path}: {error}; going back to an older state", file=sys.stderr)
                continue
            if values["code"] != self.code:
                if values["progress"].get("finished"):
                    print(f"note: the code has changed since {path} was finished; starting anew", file=sys.stderr)
                    return None
                print(f"note: the code has changed since {path} was saved; going on from it", file=sys.stderr)
            return tensors, values
        return None
