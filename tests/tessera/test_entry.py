"""How every entry point starts and ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tessera import entry, locks, snapshot
from tessera import project as project_files
from tessera.errors import UserError
from tessera.project import syntax


@pytest.fixture
def project(in_tmp, repository):
    shutil.copy(repository / "params.yaml", in_tmp / "params.yaml")
    return in_tmp


def test_run_gets_the_checked_parameters_and_the_arguments(project):
    seen = []

    def add(parser):
        parser.add_argument("--count", type=int, default=1)

    status = entry.main(lambda params, arguments: seen.append((params, arguments)), "doc", ["--count", "3"], add)
    assert status == 0
    assert seen[0][0].data.source == "digits" and seen[0][1].count == 3


def test_a_mistake_in_params_is_one_line_before_any_work(project, capsys):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(
        re.sub(r"(?m)^  temperature: \S+", "  temperature: warm", text), encoding="utf-8"
    )
    status = entry.main(lambda *_: pytest.fail("ran"), "doc", [])
    output = capsys.readouterr()
    assert status == 2 and output.out == ""
    assert output.err.startswith("error: params.yaml: sampling.temperature: ") and output.err.count("\n") == 1


def test_another_parameter_file_can_be_named(project):
    (project / "params.yaml").rename(project / "mine.yaml")
    assert entry.main(lambda *_: None, "doc", ["--params", "mine.yaml"]) == 0
    assert entry.main(lambda *_: None, "doc", []) == 2


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
    assert capsys.readouterr().err.startswith("error: params.yaml: edited while this ran, so ")
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


def fail(*_):
    raise UserError("no images here; put some there")


def test_a_stage_runs_once_at_a_time_and_a_run_with_options_is_no_stage(project, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USES", ("data",), raising=False)
    ran = []

    def add(parser):
        parser.add_argument("--output")

    def beside(arguments):
        return entry.main(lambda *_: ran.append(arguments), "doc", arguments, add)

    def run(*_):
        ran.append([beside([]), beside(["--params", "params.yaml"]), beside(["--output", "x.png"])])

    assert entry.main(run, "doc", [], add) == 0
    assert ran == [["--output", "x.png"], [75, 75, 0]]
    said = f"error: process {os.getpid()} is running {__name__} in this folder; wait for it, or stop it\n"
    assert capsys.readouterr().err == said * 2
    assert beside([]) == 0


def test_a_user_error_is_one_line_and_status_2(project, capsys):
    assert entry.main(fail, "doc", []) == 2
    assert capsys.readouterr().err == "error: no images here; put some there\n"


def test_only_one_of_several_processes_speaks(project, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert entry.main(fail, "doc", []) == 2
    assert capsys.readouterr().err == ""


def test_every_machine_of_several_speaks(project, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert entry.main(fail, "doc", []) == 2
    assert capsys.readouterr().err.startswith("error: [process 8] ")


def test_a_defect_keeps_its_traceback(project):
    def defect(*_):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        entry.main(defect, "doc", [])


def test_a_gpu_without_enough_memory_is_one_line_that_says_what_to_lower(project, capsys, monkeypatch):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB. GPU 0 has ...")

    assert entry.main(fill, "doc", []) == 2
    said = capsys.readouterr().err
    assert (
        said == "error: there is not enough memory (CUDA out of memory); use less at a time, or a machine with more\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "MEMORY", "runtime.micro_batch", raising=False)
    assert entry.main(fill, "doc", []) == 2
    assert capsys.readouterr().err.endswith("; lower runtime.micro_batch\n")


def test_main_memory_that_is_not_enough_is_one_line_too(project, capsys):
    def fill(*_):
        torch.empty(2**60, dtype=torch.uint8)

    assert entry.main(fill, "doc", []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is not enough memory (") and said.count("\n") == 1


def test_what_torch_cannot_compile_is_one_line_that_says_what_to_do(project, capsys, monkeypatch):
    """As after a compilation that was killed, whose file is short."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/folder")

    def broken(graph, inputs):
        raise ImportError("/some/folder/c7.so: file too short")

    def compiled(*_):
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(2))

    assert entry.main(compiled, "doc", []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: torch.compile failed (backend='broken' raised: ImportError: /some/folder/c7.so")
    assert "set compile to false" in said and "delete /some/folder" in said and "TORCHDYNAMO" not in said
    assert said.count("\n") == 1


def test_a_repeated_sigterm_does_not_interrupt_the_removal_of_temporary_files(project):
    removed = []

    def run(params, arguments):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            removed.append(True)

    with pytest.raises(SystemExit) as ended:
        entry.main(run, "doc", [])
    assert ended.value.code == 143 and removed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_stage_with_its_status_after_temporary_files_are_removed(project, number):
    removed = []

    def run(*_):
        try:
            os.kill(os.getpid(), number)
        finally:
            removed.append(True)

    with pytest.raises(SystemExit) as end:
        entry.main(run, "doc", [])
    assert end.value.code == 128 + number and removed
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_signal_stays_ignored(project):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        assert entry.main(lambda *_: os.kill(os.getpid(), signal.SIGHUP), "doc", []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_help_shows_the_description(capsys):
    with pytest.raises(SystemExit) as left:
        entry.main(fail, "Makes pictures.", ["--help"])
    assert left.value.code == 0
    assert "Makes pictures." in capsys.readouterr().out
