"""A `python` that has torch and other libraries loaded when it starts, for the tests of many short stages.

`folder()` has a program `python`, to be put first on PATH. The program passes its command line, current folder,
environment and open files to a server. The server forks, and the child runs the command. The program ends as the child
does. If the program is killed, the server kills the child.

The server loads no code of the product, so each child reads that code anew. A real interpreter runs commands with other
options, and those in whose environment a library might load differently, such as one with PYTHONHASHSEED.

What a fork cannot have of its own: all commands of a server share the order of sets of strings (one hash seed), and
`sys.flags` and `sys.orig_argv` are the server's.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import marshal
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import NoReturn

from forked_client import REAL

# What the stages and DVC load. pyarrow is not among it, nor what loads it, because it starts a thread, and a forked
# process has one thread alone.
LIBRARIES = (
    "accelerate",
    "dvc.api",
    "dvc.cli",
    "dvc.repo",
    "pydantic.types",
    "rich.console",
    "rich.table",
    "ruamel.yaml",
    "safetensors.torch",
    "scipy.optimize",
    "torch._dynamo",
    "torch.distributed.launcher.api",
    "torchmetrics.functional.image",
    "torchvision.transforms.v2",
    "transformers.models.gpt2.modeling_gpt2",
)
# What variables that no library reads while it is loaded begin with. All others must be as the server has them.
FREE = (
    *(b"DVC", b"GIT_", b"OLDPWD", b"PATH", b"PWD", b"PYTEST_", b"PYTHONPATH", b"SHLVL", b"_"),
    # What torchrun and the tests of several processes set.
    *(b"ACCELERATE_USE_CPU", b"GROUP_", b"LOCAL_", b"MASTER_", b"PYTHON_EXEC", b"RANK", b"ROLE_", b"TORCHELASTIC_"),
    *(b"TORCH_NCCL_ASYNC_ERROR_HANDLING", b"WORLD_SIZE"),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # in the environment of the server, and so in that of its commands

Variables = dict[bytes, bytes]


@cache
def environment() -> dict[str, str]:
    """The environment for commands: the tests' own when the server began. Libraries change the tests' own later."""
    return dict(os.environ | ONE_THREAD)


@cache
def folder() -> Path | None:
    """The folder with the program `python`; its server ends with this process. None: there is none on this system."""
    if not sys.platform.startswith("linux") or len(os.fsencode(tempfile.gettempdir())) > 80:  # a socket's name is short
        return None
    made = Path(tempfile.mkdtemp(prefix="python-"))  # which the server deletes
    address = str(made / "socket")
    here = Path(__file__).parent
    command = shlex.join([sys.executable, "-IS", str(here / "forked_client.py"), sys.executable, address])
    (made / "python").write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    (made / "python").chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()  # commands wait here until the server has loaded the libraries
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", f"import forked_python; forked_python.serve({listener.fileno()})"],
            cwd=made,
            env=environment() | {"PYTHONPATH": str(here)},
            stdin=subprocess.PIPE,  # whose end tells the server that this process has ended
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    atexit.register(server.communicate)
    return made


def serve(listener: int) -> NoReturn:
    """Fork for each command, until the process that started the server ends. Then delete the current folder.

    Args:
        listener: the file descriptor of the socket to listen on.
    """
    del sys.path[0]  # the tests
    before = dict(os.environb)
    for name in LIBRARIES:
        import_module(name)
    set_by_libraries = {name: value for name, value in os.environb.items() if name not in before}
    alone = len(os.listdir("/proc/self/task")) == 1  # a fork would lose other threads
    gc.freeze()  # a collection would copy the memory that all processes share
    with socket.socket(fileno=listener) as door:
        while 0 not in select.select([0, door], [], [])[0]:
            client, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _supervise(client, set_by_libraries, alone)
            client.close()
            with suppress(ChildProcessError):  # there is none
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    with suppress(ChildProcessError):
        while os.wait():
            pass
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    os._exit(0)


def _supervise(client: socket.socket, set_by_libraries: Variables, can_fork: bool) -> NoReturn:
    """Fork a process that runs the client's command, wait for it, and tell the client how it ended.

    The command, and whatever it has started, is killed if the client or the tests end.
    """
    os.setpgid(0, 0)  # the group to kill
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    arguments, place, given = marshal.loads(client.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
    variables, loaded = set_by_libraries | given, dict(os.environb)
    differing = [name for name in variables | loaded if variables.get(name) != loaded.get(name)]
    if not can_fork or not all(name.startswith(FREE) for name in differing):
        client.send(REAL)
        os._exit(0)
    pid = os.fork()
    if pid == 0:
        client.close()
        _become(files, place, variables)
        _end(partial(_run, [os.fsdecode(each) for each in arguments]))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(pid)
    if ended not in select.select([0, client, ended], [], [])[0]:
        os.killpg(0, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):  # it has ended
        client.send(str(status).encode())
    os._exit(0)


def _become(files: list[int], place: bytes, variables: Variables) -> None:
    """Make this process what an interpreter is at its start.

    Args:
        files: file descriptors for standard input, output and errors.
        place: the current folder.
        variables: the environment.
    """
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    os.chdir(place)
    os.environ.clear()
    os.environb.update(variables)
    if python_path := os.environ.get("PYTHONPATH"):
        sys.path[:0] = map(os.path.abspath, python_path.split(os.pathsep))
    sys.modules["numpy"].random.seed()  # Python's own `random` does so by itself
    invalidate_caches()
    main = vars(sys.modules["__main__"])
    main.clear()
    main |= {"__name__": "__main__", "__builtins__": builtins}
    main |= dict.fromkeys(("__doc__", "__loader__", "__package__", "__spec__"))


def _run(arguments: list[str]) -> None:
    """Do what an interpreter does with a command line: `-m` and a module, `-c` and code, or a file; then arguments.

    `-u` may come first.
    """
    if arguments[0] == "-u":
        del arguments[0]
        sys.stdout.reconfigure(write_through=True)
    first, *rest = sys.argv = arguments
    main = vars(sys.modules["__main__"])
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        del sys.argv[1]
        runpy._run_module_as_main(rest[0])  # what an interpreter calls
    elif first == "-c":
        sys.path.insert(0, "")
        del sys.argv[1]
        exec(compile(rest[0], "<string>", "exec"), main)
    else:
        sys.path.insert(0, os.path.dirname(os.path.realpath(first)))
        main["__file__"] = os.path.abspath(first)
        exec(compile(Path(first).read_bytes(), main["__file__"], "exec"), main)


def _end(run: Callable[[], None]) -> NoReturn:
    """Run and end as an interpreter does, but without freeing every object, which takes half a second."""
    status = 0
    try:
        run()
    except KeyboardInterrupt:
        status = -signal.SIGINT
        sys.excepthook(*sys.exc_info())
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code & 0xFF
        elif end.code is not None:
            status = 1
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120  # as an interpreter's
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)
