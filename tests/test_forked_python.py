"""The `python` of forked_python.py does what a real one does, and leaves nobody behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked_python
import psutil
import pytest
from whole_runs import HANGS, alive, wait_for

from tessera.project import PACKAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a real interpreter runs everything"),
]
LOADED = "import sys; print('torch' in sys.modules)"
MODULE = """
import atexit, os, sys
atexit.register(print, "at the end")
print(sys.argv, sys.path[:2], os.getcwd(), os.environ["DVC_STAGE"], sys.stdin.read())
print(__name__, __file__, __spec__ and __spec__.name)
print("error", file=sys.stderr)
"""
COMMANDS = {
    "a module": ["-m", "package.module", "-a", "b c"],
    "a file": ["package/module.py", "--x"],
    "code": ["-c", "import sys; print(sys.argv, sys.path[:2], __name__); sys.exit()", "-c", "é"],
    "status": ["-c", "raise SystemExit(259)"],
    "negative status": ["-c", "raise SystemExit(-1)"],
    "message": ["-c", "raise SystemExit('why')"],
    "signal": ["-c", "import os; print('lost'); os.kill(os.getpid(), 15)"],
    "unbuffered": ["-u", "-c", "import os; print('kept', end=''); os.kill(os.getpid(), 15)"],
    "interrupt": ["-c", "raise KeyboardInterrupt"],
    "error": ["-c", "print('before'); import package.broken"],
    "no module": ["-m", "package.missing"],
    "thread": ["-c", "import threading, time; threading.Timer(0.2, print, ['late']).start(); print('main')"],
    "other options": ["-X", "utf8", "-c", LOADED],
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package."""
    (tmp_path / "package").mkdir()
    for name, text in {"module": MODULE, "broken": "1 / 0\n", "__init__": ""}.items():
        (tmp_path / "package" / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path


def started(program: Path, arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A command of either `python`, run to its end."""
    environment = forked_python.environment() | {"DVC_STAGE": "train", "PYTHONPATH": "one"} | variables
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        input="typed",
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )


def forked(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A command of the forked `python`."""
    return started(forked_python.folder() / "python", arguments, folder, **variables)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_prints_and_ends_as_with_a_real_interpreter(project: Path, arguments: list[str]) -> None:
    found, real = forked(arguments, project), started(Path(sys.executable), arguments, project)
    assert (found.returncode, found.stdout) == (real.returncode, real.stdout)
    if "Traceback" in real.stderr:  # whose first lines are those of who started the code
        assert found.stderr.splitlines()[-2:] == real.stderr.splitlines()[-2:]
    else:
        assert found.stderr == real.stderr


def test_libraries_are_loaded_and_code_of_the_product_is_not(project: Path) -> None:
    names = (
        f"import sys; print({{name.split('.')[0] for name in sys.modules}} & {{*{PACKAGES}}}, 'torch' in sys.modules)"
    )
    assert forked(["-c", names], project).stdout == "set() True\n"


def test_an_edit_of_code_is_seen(project: Path) -> None:
    for number in (1, 2):
        (project / "package" / "edited.py").write_text(f"print('{'edit' * number}')", encoding="utf-8")
        assert forked(["-m", "package.edited"], project).stdout == f"{'edit' * number}\n"


def test_random_numbers_are_others_each_time(project: Path) -> None:
    code = "import random, numpy; print(random.random()); print(numpy.random.random())"
    one, other = (forked(["-c", code], project).stdout.split() for _ in range(2))
    assert len({*one, *other}) == 4


def test_a_variable_that_a_library_may_read_needs_a_real_interpreter(project: Path) -> None:
    assert forked(["-c", LOADED], project).stdout == "True\n"
    assert forked(["-c", LOADED], project, HF_HOME="elsewhere").stdout == "False\n"


@pytest.mark.parametrize("number", [2, 9, 15])
def test_a_command_whose_program_is_killed_ends_with_what_it_started(project: Path, number: int) -> None:
    code = (
        "import os, subprocess; p = subprocess.Popen(['sleep', '600']); print(os.getpid(), p.pid, flush=True); p.wait()"
    )
    program = [forked_python.folder() / "python", "-c", code]
    with subprocess.Popen(program, env=forked_python.environment(), stdout=subprocess.PIPE) as command:
        family = [psutil.Process(int(pid)) for pid in command.stdout.readline().split()]
        command.send_signal(number)
        assert command.wait() == -number
        wait_for(lambda: not any(map(alive, family)), f"still there: {family}", seconds=5)


def test_the_server_and_its_commands_end_with_the_tests(project: Path) -> None:
    code = (
        "import forked_python, os, subprocess; folder = forked_python.folder()\n"
        "subprocess.run([folder / 'python', '-c', 'import os, time; print(os.getpid(), os.getppid(), flush=True); "
        "time.sleep(600)'], env=forked_python.environment())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(forked_python.__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as tests:
        family = [psutil.Process(int(pid)) for pid in tests.stdout.readline().split()]
        family.append(family[1].parent())  # the server
        tests.kill()
    wait_for(lambda: not any(map(alive, family)), f"still there: {family}", seconds=5)


def test_a_variable_that_a_library_sets_in_the_tests_later_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = forked_python.folder() / "python"
    assert started(program, ["-c", LOADED], project).stdout == "True\n"
    monkeypatch.setenv("TORCH_LATER", "1")
    assert started(program, ["-c", LOADED], project).stdout == "True\n"
