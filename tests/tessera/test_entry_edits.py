"""Code and parameters that a stage uses are edited while it runs: its result is kept, and it does not count."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera import entry, locks, paths, snapshot
from tessera import project as project_files
from tessera.project import syntax


@pytest.fixture
def project(in_tmp, repository):
    shutil.copy(repository / "params.yaml", in_tmp / "params.yaml")
    return in_tmp


def edit_params(text, new):
    """A stage that edits params.yaml in the current folder while it runs."""

    def run(params, arguments):
        file = Path("params.yaml")
        before = file.read_text(encoding="utf-8")
        assert text in before
        file.write_text(before.replace(text, new), encoding="utf-8")

    return run


def test_an_edit_of_a_used_parameter_while_the_stage_runs_is_an_error(project, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)
    assert entry.main(edit_params("# Every number", "# Each number"), "doc", []) == 0
    assert entry.main(edit_params("log_every: 20", "log_every: 21"), "doc", []) == 0
    assert entry.main(edit_params("split_seed: 0", "split_seed: 1"), "doc", []) == 2
    assert capsys.readouterr().err.startswith(
        "error: params.yaml: edited while this ran (data.split_seed was 0 and is now 1), so "
    )
    assert entry.main(lambda *_: None, "doc", []) == 0


def test_an_edit_of_imported_code_while_the_stage_runs_is_an_error(project, capsys, monkeypatch):
    package = project / "tessera"
    package.mkdir()
    for name in ("imported", "other"):
        (package / f"{name}.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(project_files, "ROOT", project)
    monkeypatch.setitem(sys.modules, "tessera.imported", SimpleNamespace(__file__=str(package / "imported.py")))

    def edits(name, text):
        return lambda *_: (package / f"{name}.py").write_text(text, encoding="utf-8")

    assert entry.main(edits("other", "x = 2\n"), "doc", []) == 0  # this process never imported it
    assert entry.main(edits("imported", "# a comment\nx = 1\n"), "doc", []) == 0
    assert entry.main(edits("imported", '"""A docstring."""\n\nx = 1\n'), "doc", []) == 0
    assert entry.main(edits("imported", "x = 2\n"), "doc", []) == 2
    assert f"error: {package / 'imported.py'}: edited while this ran" in capsys.readouterr().err


def test_code_that_was_edited_before_a_result_gets_its_name_is_refused(project, capsys, monkeypatch):
    """A state or a part is named by a hash of the code, which must be the code that runs."""
    package = project / "tessera"
    package.mkdir()
    (package / "imported.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(project_files, "ROOT", project)
    monkeypatch.setitem(sys.modules, "tessera.imported", SimpleNamespace(__file__=str(package / "imported.py")))

    def edits(text):
        def run(*_):
            (package / "imported.py").write_text(text, encoding="utf-8")
            snapshot.require_unedited()

        return run

    assert entry.main(edits("# a comment\nx = 1\n"), "doc", []) == 0
    assert entry.main(edits("x = 2\n"), "doc", []) == 2
    assert "imported.py: edited while this run was starting, which has made nothing yet" in capsys.readouterr().err
    assert entry.main(edits("x = 2\n"), "doc", []) == 0


def test_a_file_that_is_half_typed_at_the_end_is_an_edit_and_no_defect(project, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)
    package = project / "tessera"
    package.mkdir()
    file = package / "imported.py"
    file.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(project_files, "ROOT", project)
    monkeypatch.setattr(entry, "ROOT", project)
    monkeypatch.setitem(sys.modules, "tessera.imported", SimpleNamespace(__file__=str(file)))
    monkeypatch.setattr(entry, "fingerprint", lambda *_: {"code": {"tessera/imported.py": syntax(file.read_bytes())}})
    assert entry.main(lambda *_: file.write_text("x = (", encoding="utf-8"), "doc", []) == 2
    assert f"error: {file}: edited while this ran, so " in capsys.readouterr().err


@pytest.mark.parametrize("known", [True, False])
def test_a_used_file_that_is_renamed_while_the_stage_runs_is_an_edit(project, capsys, monkeypatch, known):
    """Both without DVC, and with the fingerprint that the stage `fingerprint` wrote before."""
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)
    file = project / "tessera" / "imported.py"
    file.parent.mkdir()
    file.write_text("x = 1\n", encoding="utf-8")
    for module in (project_files, entry):
        monkeypatch.setattr(module, "ROOT", project)
    monkeypatch.setitem(sys.modules, "tessera.imported", SimpleNamespace(__file__=str(file)))

    def of_files_there(*_):
        there = {"tessera/imported.py": syntax(file.read_bytes())} if known or file.exists() else {}
        return {"module": __name__, "code": there, "parameters": {}}

    monkeypatch.setattr(entry, "fingerprint", of_files_there)
    if known:
        monkeypatch.setenv("DVC_STAGE", "named")
        recorded = paths.FINGERPRINTS / "named.json"
        recorded.parent.mkdir(parents=True)
        recorded.write_text(json.dumps(of_files_there()), encoding="utf-8")

    def run(*_):
        locks.note_result(project / "kept")
        file.rename(file.with_suffix(".old"))

    assert entry.main(run, "doc", []) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}: edited while this ran, so ") and f"kept in {project / 'kept'}" in said


@pytest.mark.parametrize("spent", [True, False])
def test_what_a_run_keeps_is_named_after_an_edit_and_deleted_without_one(project, capsys, monkeypatch, spent):
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)
    kept = project / ".state" / "train_vqvae" / "123" / "finished-9"

    def run(edit):
        def work(*_):
            kept.mkdir(parents=True, exist_ok=True)
            locks.note_result(kept, spent)
            edit(None, None)

        return work

    edit = edit_params("split_seed: 0", "split_seed: 1")
    assert entry.main(run(edit), "doc", []) == 2
    said = capsys.readouterr().err
    assert kept.exists() and f"It is kept in {kept}. Undo the edit and run again" in said
    assert ("states --publish train_vqvae/123/finished-9 FOLDER" in said) == (not spent)
    assert entry.main(run(lambda *_: None), "doc", []) == 0
    assert kept.exists() == (not spent)


def test_parameters_that_cannot_be_read_any_more_are_an_edit_and_the_result_is_named(project, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)

    def run(*_):
        locks.note_result(project / "kept")
        (project / "params.yaml").write_text("data: [", encoding="utf-8")

    assert entry.main(run, "doc", []) == 2
    said = capsys.readouterr().err
    assert "not valid YAML" in said and f"It is kept in {project / 'kept'}" in said and said.count("\n") == 1
