"""`python -m tessera compare`: commits and experiments by their names, and what cannot be compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from compared_runs import commit, compare, git, row, write_metrics

from tessera import paths
from tessera.cli import main as command
from tessera.cli.preset import edit


def test_nothing_named_is_head_and_the_workspace_with_changes(project, capsys):
    edit(paths.PARAMS, {"stage2_prior.layers": 4})
    write_metrics(0.7)
    text = compare(capsys)
    assert row(text, "stage2_prior.layers") == ["2", "4"]
    assert row(text, "evaluate:bits_per_dim.rate_prior") == ["lower", "0.7468", "* 0.7000", "-0.04679"]
    assert compare(capsys, "HEAD") == text == compare(capsys, "HEAD", "workspace")


def test_two_commits_by_any_name_of_git(three_priors, capsys):
    first, second = git("rev-parse", "first"), git("rev-parse", "HEAD~1")
    for names in (("first", "HEAD~1"), (first, second), (first[:9], "pixelcnn"), ("HEAD~2", "HEAD^")):
        text = compare(capsys, *names)
        assert row(text, "stage2_prior.name") == ["transformer", "pixelcnn"]
        assert row(text, "train_prior:validation.nats_per_token") == ["lower", "1.867", "* 1.781", "-0.08612"]


def experiment(name: str, baseline: str) -> str:
    """A commit that only a reference as DVC makes them leads to."""
    edit(paths.PARAMS, {"stage2_prior.layers": 7})
    commit(name)
    made = git("rev-parse", "HEAD")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", made)
    git("reset", "--quiet", "--hard", baseline)
    return made


def test_an_experiment_is_found_by_its_name_without_dvc(project, capsys):
    made = experiment("seven-layers", git("rev-parse", "HEAD"))
    text = compare(capsys, "HEAD", "seven-layers")
    assert row(text, "stage2_prior.layers") == ["2", "7"] and made[:7] in text


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert command(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_of_experiments_with_one_name_the_one_from_here_is_meant_or_a_hash_is_asked_for(project, capsys):
    start = git("rev-parse", "HEAD")
    one = experiment("twin", start)
    here = commit("elsewhere")
    two = experiment("twin", here)
    assert two[:7] in compare(capsys, "twin")
    commit("a third place")
    error = refused(capsys, "twin")
    assert one[:7] in error and two[:7] in error


def test_what_cannot_be_compared_is_one_line(project, capsys, monkeypatch):
    experiment("brave-lion", git("rev-parse", "HEAD"))
    assert "no revision of Git and no DVC experiment (brave-lion)" in refused(capsys, "brave-lyon")
    git("rm", "--quiet", "params.yaml")
    commit("nothing here")
    assert "has no params.yaml" in refused(capsys, "HEAD", "first")
    git("checkout", "--quiet", "first", "--", "params.yaml")
    Path("results/evaluate/metrics.json").write_text('{"bits_per_dim": ', encoding="utf-8")
    assert "workspace: results/evaluate/metrics.json: not valid JSON" in refused(capsys, "first")
    monkeypatch.setenv("PATH", "")
    assert "install git" in refused(capsys, "first")


def test_outside_a_repository_and_before_the_first_commit(in_tmp, repository, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(in_tmp.parent))
    shutil.copy(repository / "params.yaml", in_tmp)
    assert "no Git repository" in refused(capsys)
    git("init", "--quiet")
    assert "no commit yet" in refused(capsys)
    assert "no figures" in compare(capsys, "workspace")
