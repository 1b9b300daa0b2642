"""The stages as DVC resolves them, and DVC commands whose stages are forked from one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dvc_projects
from dvc.repo import Repo

dvc = partial(dvc_projects.dvc, forked=True)


def resolved(folder: Path) -> dict[str, dict[str, Any]]:
    """Each stage as DVC resolves it: `cmd`, `deps` and `outs`, in dvc.yaml's order."""
    with Repo(str(folder)) as repo:
        return {
            stage.name: {
                "cmd": stage.cmd,
                "deps": [dep.def_path for dep in stage.deps],
                "outs": [out.def_path for out in stage.outs],
            }
            for stage in repo.index.stages
        }
