"""Repositories with commits of made-up figures, for tests of `python -m tessera compare`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from compared_runs import commit, git, write_metrics

from tessera import paths
from tessera.cli.preset import edit


@pytest.fixture
def project(in_tmp: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit: the default parameters, and figures."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    shutil.copy(repository / "params.yaml", in_tmp)
    git("init", "--quiet")
    write_metrics(0.7467917)
    commit("transformer")
    git("tag", "first")
    return in_tmp


@pytest.fixture
def three_priors(project: Path) -> Path:
    """Three commits, tagged by the names of their priors."""
    git("tag", "transformer")
    for prior, rate in (("pixelcnn", 0.7123456), ("counts", 0.93)):
        edit(paths.PARAMS, {"stage2_prior.name": prior, "stage2_prior.pixelcnn.kernel_size": 5})
        write_metrics(rate)
        commit(prior)
        git("tag", prior)
    return project
