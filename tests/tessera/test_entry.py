"""How every entry point starts and ends."""

from __future__ import annotations

import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from tessera import entry as command
from tessera import project as project_files
from tessera.errors import UserError


@pytest.fixture
def project(in_tmp, repository):
    shutil.copy(repository / "params.yaml", in_tmp / "params.yaml")
    return in_tmp


def test_run_gets_the_checked_parameters_and_the_arguments(project):
    seen = []

    def add(parser):
        parser.add_argument("--count", type=int, default=1)

    status = command.main(lambda params, arguments: seen.append((params, arguments)), "doc", ["--count", "3"], add)
    assert status == 0
    assert seen[0][0].data.source == "digits" and seen[0][1].count == 3


def test_a_mistake_in_params_is_one_line_before_any_work(project, capsys):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(
        re.sub(r"(?m)^  temperature: \S+", "  temperature: warm", text), encoding="utf-8"
    )
    status = command.main(lambda *_: pytest.fail("ran"), "doc", [])
    output = capsys.readouterr()
    assert status == 2 and output.out == ""
    assert output.err.startswith("error: params.yaml: sampling.temperature: ") and output.err.count("\n") == 1


def test_another_parameter_file_can_be_named(project):
    (project / "params.yaml").rename(project / "mine.yaml")
    assert command.main(lambda *_: None, "doc", ["--params", "mine.yaml"]) == 0
    assert command.main(lambda *_: None, "doc", []) == 2


def test_an_edit_while_it_runs_is_told_and_names_the_file(project, capsys, monkeypatch):
    def edit(params, arguments):
        with (project / "params.yaml").open("a", encoding="utf-8") as file:
            file.write("# a thought\n")

    assert command.main(edit, "doc", []) == 2
    assert capsys.readouterr().err.startswith("error: params.yaml: edited while this ran; ")
    assert command.main(lambda *_: None, "doc", []) == 0

    package = project / "common"
    package.mkdir()
    for name in ("imported", "other"):
        (package / f"{name}.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(project_files, "ROOT", project)
    monkeypatch.setitem(sys.modules, "common.imported", SimpleNamespace(__file__=str(package / "imported.py")))
    edits = lambda name: lambda *_: (package / f"{name}.py").write_text("x = 2\n", encoding="utf-8")  # noqa: E731
    assert command.main(edits("other"), "doc", []) == 0  # which this process never read
    assert command.main(edits("imported"), "doc", []) == 2
    assert f"error: {package / 'imported.py'}: edited while this ran" in capsys.readouterr().err


def fail(*_):
    raise UserError("no images here; put some there")


def test_a_user_error_is_one_line_and_status_2(project, capsys):
    assert command.main(fail, "doc", []) == 2
    assert capsys.readouterr().err == "error: no images here; put some there\n"


def test_only_one_of_several_processes_speaks(project, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command.main(fail, "doc", []) == 2
    assert capsys.readouterr().err == ""


def test_every_machine_of_several_speaks(project, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command.main(fail, "doc", []) == 2
    assert capsys.readouterr().err.startswith("error: [process 8] ")


def test_a_defect_keeps_its_traceback(project):
    def defect(*_):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        command.main(defect, "doc", [])


def test_a_gpu_without_enough_memory_is_one_line_that_says_what_to_lower(project, capsys):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB. GPU 0 has ...")

    assert command.main(fill, "doc", []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the GPU's memory is not enough (CUDA out of memory); lower the batch_size")
    assert said.count("\n") == 1


def test_what_torch_cannot_compile_is_one_line_that_says_what_to_do(project, capsys, monkeypatch):
    """As after a compilation that was killed, whose file is short."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/folder")

    def broken(graph, inputs):
        raise ImportError("/some/folder/c7.so: file too short")

    def compiled(*_):
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(2))

    assert command.main(compiled, "doc", []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: torch.compile failed (backend='broken' raised: ImportError: /some/folder/c7.so")
    assert "set compile to false" in said and "delete /some/folder" in said and "TORCHDYNAMO" not in said
    assert said.count("\n") == 1


def test_help_shows_the_description(capsys):
    with pytest.raises(SystemExit) as left:
        command.main(fail, "Makes pictures.", ["--help"])
    assert left.value.code == 0
    assert "Makes pictures." in capsys.readouterr().out
