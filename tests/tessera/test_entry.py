"""How every entry point starts and ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tessera import entry, locks
from tessera.errors import UserError


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


def test_ctrl_c_is_told_in_one_line(project, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert entry.main(interrupted, "doc", []) == 130
    assert capsys.readouterr().err == "stopped by SIGINT; run the same command again\n"


@pytest.mark.parametrize("command", ["tessera", "stage0_images.prepare", "sampling.sample", "sampling.save"])
def test_without_its_packages_a_command_says_to_activate_the_environment(repository, command):
    bare = [sys.executable, "-S", "-m", command, "--help"]  # as a Python without Tessera's packages
    done = subprocess.run(bare, cwd=repository, capture_output=True, text=True, env={})
    assert done.returncode == 1
    assert "activate their environment (source .venv/bin/activate)" in done.stderr.splitlines()[-1]


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


@pytest.fixture
def second_of_two(project, monkeypatch):
    """This process is the second of two that torchrun started on this machine."""
    set_by_torchrun = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in set_by_torchrun.items():
        monkeypatch.setenv(name, value)


def test_an_error_in_the_work_of_one_of_several_processes_is_printed_with_its_number(second_of_two, capsys):
    """Another process may not fail at all, or only because it waits for this one."""
    assert entry.main(fail, "doc", [], parallel=True) == 2
    assert capsys.readouterr().err == "error: [process 1] no images here; put some there\n"


def test_only_one_of_several_processes_prints_what_all_of_them_find(project, second_of_two, capsys):
    def busy(*_):
        raise locks.Busy("another run")

    assert entry.main(busy, "doc", [], parallel=True) == 75
    assert entry.main(lambda *_: None, "doc", []) == 2  # runs in one process only
    (project / "params.yaml").unlink()
    assert entry.main(lambda *_: None, "doc", [], parallel=True) == 2
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
def test_the_death_of_a_parent_after_ctrl_c_does_not_hide_the_line(project, capsys, number):
    removed = []

    def run(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(number)
            removed.append(True)

    before = signal.getsignal(signal.SIGINT)
    assert entry.main(run, "doc", []) == 130 and removed
    assert capsys.readouterr().err == "stopped by SIGINT; run the same command again\n"
    assert signal.getsignal(signal.SIGINT) is before and signal.getsignal(number) is signal.SIG_DFL


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


def test_a_script_beside_a_clone_of_the_same_name_imports_the_package(tmp_path):
    (tmp_path / "tessera" / "tessera").mkdir(parents=True)  # a folder that Python would take for a package
    (tmp_path / "script.py").write_text("import tessera\nassert tessera.__file__\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, check=True)
