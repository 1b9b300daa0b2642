"""Training state that survives an interruption: saved atomically, found again by fingerprint.

It lies in `.state/<stage>/<fingerprint>/`, outside every DVC output (DVC deletes outputs before a stage runs). The
fingerprint covers parameters and inputs, so changed parameters never resume old weights.
"""

from __future__ import annotations

import fcntl
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

from tessera.artifacts.files import file_hash, json_text
from tessera.artifacts.manifests import read_manifest
from tessera.artifacts.publishing import clear_unfinished, publishing
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.project import loaded

KEPT = 2  # an older state stays until the newer one is verified


def fingerprint(stage: str, params: dict[str, Any], parents: dict[str, str]) -> str:
    """What a run is: the hash of its stage, its parameters as JSON values, and its inputs' identities."""
    return hashlib.sha256(json_text({"stage": stage, "params": params, "parents": parents}).encode()).hexdigest()[:32]


def code_hash() -> str:
    """The hash of this project's Python sources that this process has imported; recorded beside the state, not part of
    the fingerprint."""
    return hashlib.sha256("".join(file_hash(path) for path in loaded()).encode()).hexdigest()


class StateFolder:
    """The saved states of one run; holds an exclusive lock while it is open, so that two runs never share it."""

    def __init__(self, stage: str, identity: str, exclusive: bool) -> None:
        """`exclusive` is for the one process that saves; the others of the same run only read."""
        root = Path(os.environ.get("DVC_ROOT", "."))
        self.folder = root / ".state" / stage / identity
        self.exclusive = exclusive
        self.code = code_hash()  # now: what is edited during the run is not what runs
        self._lock: Any = None

    def __enter__(self) -> StateFolder:
        if not self.exclusive:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock:
            self._lock.close()

    def _states(self) -> list[Path]:
        """Saved states, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def save(self, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Save a state; older ones beyond `KEPT` are deleted only after the new one stands verified."""
        target = self.folder / f"step-{step:09d}"
        with publishing(target, "state", {}) as staging:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, staging / "state.safetensors")
            values = {**values, "step": step, "code": self.code}
            (staging / "state.json").write_text(json.dumps(values), encoding="utf-8")
        read_manifest(target, "state")
        # A state beyond this step is one that was damaged and passed over: it must not count among the kept.
        kept = [path for path in self._states() if path.name <= target.name][:KEPT]
        for path in set(self._states()) - set(kept):
            shutil.rmtree(path)

    def latest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest intact state, or None; a damaged one is reported and passed over.

        An unfinished run goes on under changed code, and says so. A finished one does not: its result would be
        published again as if the changed code had made it.
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
