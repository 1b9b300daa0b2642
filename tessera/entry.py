"""What every entry point does around its work: it reads the command line, checks params.yaml, starts several processes
if they are wanted, and turns errors into one line and an exit status.

torch is imported only after params.yaml is checked, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import ModuleType

from tessera import locks, paths, snapshot, times
from tessera.artifacts.edited import first_difference
from tessera.console import say, starting
from tessera.documents import read_json
from tessera.errors import UserError
from tessera.explained import explained
from tessera.fingerprint import fingerprint
from tessera.launch import failures, processes
from tessera.launch.parents import LAUNCHER_PID, stop_with_parent, wait_for_launcher
from tessera.launch.threads import number_of_threads, thread_environment
from tessera.parameters import Params, load
from tessera.project import ROOT
from tessera.streams import lasting

Run = Callable[[Params, argparse.Namespace], None]


def main(
    run: Run,
    description: str,
    argv: list[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    parallel: bool = False,
) -> int:
    """Parse the command line, check params.yaml, run, and return the exit status.

    The exit status is 2 after a `UserError`, whose message is printed as one line; 75 if another process is running the
    same stage in this working folder; 128 and the signal's number after SIGINT, SIGTERM or SIGHUP. Any other exception
    is a defect and keeps its traceback.

    Args:
        run: does the work. Its module says in `USES` which sections of params.yaml change the results; a module without
            `USES` is no stage. Neither is a run with other options than --params, which writes only what they name. Its
            `MEMORY` names the parameters by which it takes less memory, for the message where there is not enough.
        argv: the command line; by default that of this process.
        parallel: whether `run` may be one of several processes. They are started here if `runtime.processes` or the
            number of GPUs asks for several. Otherwise several processes are refused, and so they are for a run with
            other options than --params.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="parameter file (default: %(default)s)")
    if add_arguments:
        add_arguments(parser)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    module, plain = sys.modules[run.__module__], given <= {"params"}
    is_stage, parallel = hasattr(module, "USES") and plain, parallel and plain
    stop_with_parent()
    working = False

    @wraps(run)
    def work(params: Params, arguments: argparse.Namespace) -> None:
        nonlocal working
        working = True
        run(params, arguments)
        working = False

    with lasting(), _exit_on_signals():
        try:
            with locks.one_run(_name(module)) if is_stage else nullcontext() as kept, snapshot.running() as code:
                return _run(work, arguments, argv, parallel, kept, code)
        except KeyboardInterrupt:
            wait_for_launcher()
            say("stopped by SIGINT; run the same command again")
            return 128 + signal.SIGINT
        except Exception as error:
            alike = not working or isinstance(error, locks.Busy)
            return _failed(error, getattr(module, "MEMORY", ""), alike)


def _run(
    run: Run,
    arguments: argparse.Namespace,
    argv: list[str],
    parallel: bool,
    kept: Path | None,
    code: snapshot.Code,
) -> int:
    """Check parameters and code, run in this process or in several, and return the exit status.

    Args:
        kept: the file that names what `run` keeps besides its outputs (`locks.note_result`), for a stage.
        code: the project's code at the start.

    Raises:
        UserError: a check failed, or the work did. One check comes at the end: code and parameters that the stage uses
            must not have been edited while it ran, because DVC would take its result for that of the edited version.
    """
    module = sys.modules[run.__module__]
    name, uses = _name(module), getattr(module, "USES", ())
    params = load(arguments.params)
    _check_fingerprint(name, uses, params)
    if not parallel:
        processes.refuse_several(name)
    threads = params.runtime.threads
    outermost = os.environ.get("RANK", "0") == "0" and LAUNCHER_PID not in os.environ
    with times.measured(name, uses, params) if kept and outermost else nullcontext({}) as outcome:
        with thread_environment(number_of_threads(threads)):
            count = processes.number_of_processes(params.runtime.processes) if parallel else 1
            if count == 1:
                used = _files_used(name, uses, params)
                # Other entry points than stages may go on for long after their last line, as `sampling.demo` does.
                with starting() if kept else nullcontext():
                    run(params, arguments)
                processes.leave()
        status = processes.start(count, name, argv, threads) if count > 1 else 0
        launched = int(os.environ.get("WORLD_SIZE", "1"))  # by torchrun, for example
        outcome |= {"processes": max(count, launched), "finished": status == 0}
    if count > 1:
        return status
    if edit := _edited(code, used, uses, params, arguments.params):
        raise UserError(f"{edit}, so {_old_result(kept)}")
    locks.delete_spent(kept)
    return 0


def _files_used(name: str, uses: tuple[str, ...], params: Params) -> set[Path] | None:
    """The files of the code that a stage uses. None: `name` is no stage, and uses all that it imports.

    It is called at the start, because imports cannot be followed through a file that is deleted or half typed at the
    end.
    """
    return {ROOT / each for each in fingerprint(name, uses, params)["code"]} if uses else None


def _edited(
    code: snapshot.Code, used: set[Path] | None, uses: tuple[str, ...], params: Params, file: Path
) -> str | None:
    """Says which code or parameters that the stage uses were edited while it ran. None: none were.

    Returns the beginning of a sentence.

    Args:
        code: the code as it was at the start.
        used: the code files that count, see `_files_used`; None: all.
        uses: the sections of params.yaml that count.
        params: the parameters as they were at the start, from `file`.
    """
    changed = [each for each in code.changed() if used is None or each in used]
    try:
        now = load(file)
    except UserError as error:
        return f"{error}; the file was edited while this ran"
    if changed:
        return f"{changed[0]}: edited while this ran"
    for path in uses:
        before, after = params.used(path), now.used(path)
        if before != after:
            place, old, new = first_difference(before, after, path) or (path, before, after)
            return f"{file}: edited while this ran ({place} was {old!r} and is now {new!r})"
    return None


def _old_result(kept: Path | None) -> str:
    """What became of a result whose code or parameters were edited meanwhile, and what to do."""
    noted = locks.noted(kept)
    if noted is None:
        return "the result was made by the version before the edit; run it again"
    state, spent = noted
    elsewhere = f", or write it elsewhere by `python -m tessera states --publish {'/'.join(state.parts[-3:])} FOLDER`"
    return (
        f"the result is that of the version before the edit. It is kept in {state}. Undo the edit and run again to "
        f"publish it in seconds{'' if spent else elsewhere}. With the edit, the same command begins anew"
    )


def _name(module: ModuleType) -> str:
    """The dotted name of a module, also of the one that `python -m` runs, which calls itself `__main__`."""
    return module.__spec__.name if module.__spec__ else module.__name__


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed and the exit status is known.

    A handler that is there already stays, and an ignored signal stays ignored. Python allows handlers in the main
    thread only. Further signals are ignored, since they would interrupt that removal, and since Linux sends several
    when a parent dies. They are ignored after Ctrl-C, too, which may have ended the parent. A second Ctrl-C still
    interrupts.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    ends = (signal.SIGTERM, signal.SIGHUP) if main_thread else ()
    handled = [number for number in ends if signal.getsignal(number) is signal.SIG_DFL]

    def leave(number: int, frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    def interrupt(number: int, frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        signal.default_int_handler(number, frame)

    interrupts = main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, interrupt)
    for number in handled:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        if interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _failed(error: Exception, memory: str, alike: bool) -> int:
    """Tell the user about an error, and return the exit status.

    One of several processes reports it to the one that started them, which prints it. Where another launcher started
    them, each process prints its own error, because it may be the only one that failed.

    Args:
        memory: the parameters by which this entry point takes less memory.
        alike: whether all processes of a machine fail in the same way. Then only the first of them prints the error.

    Raises:
        Exception: the error itself, if it is a defect and nobody takes the report.
    """
    known = error if isinstance(error, UserError) else explained(error, memory)
    if known is None:
        if not failures.report("".join(traceback.format_exception(error)).rstrip(), 1):
            raise error
        return 1
    silent = alike and os.environ.get("LOCAL_RANK", "0") != "0"
    if not failures.report(f"error: {known}", known.status) and not silent:
        rank = os.environ.get("RANK", "0")
        print("error: " + (f"[process {rank}] " if rank != "0" else "") + str(known), file=sys.stderr)
    return known.status


def _check_fingerprint(module: str, uses: tuple[str, ...], params: Params) -> None:
    """Refuse to run under DVC if code or parameters were edited after the stage `fingerprint` ran.

    DVC decides by the file that `fingerprint` wrote whether a stage is up to date. It would take the results of this
    run for results of the version before the edit.

    Raises:
        UserError: code or parameters that the stage uses were edited.
    """
    recorded = paths.FINGERPRINTS / f"{os.environ.get('DVC_STAGE')}.json"
    if not recorded.is_file():
        return
    before, now = read_json(recorded), fingerprint(module, uses, params)
    if not isinstance(before, dict) or any(type(before.get(name)) is not type(value) for name, value in now.items()):
        raise UserError(f"{recorded}: not as `fingerprint` writes it; run `dvc repro -f -s fingerprint`, then again")
    if before["module"] != now["module"]:
        raise UserError(
            f"dvc.yaml: the command of this stage was edited since the stage `fingerprint` ran, from "
            f"{before['module']} to {now['module']}; run `dvc repro -f -s fingerprint`, then again"
        )
    for kind in ("parameters", "code"):
        names = sorted({*before[kind], *now[kind]})
        if edited := [name for name in names if before[kind].get(name) != now[kind].get(name)]:
            what = "params.yaml: " + edited[0] if kind == "parameters" else edited[0]
            raise UserError(
                f"{what}: edited since the stage `fingerprint` ran, so DVC would take the result for that of older "
                f"code or parameters; run `dvc repro {os.environ['DVC_STAGE']}`, which begins with `fingerprint`"
            )
