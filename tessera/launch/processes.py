"""One entry point in several processes on this machine: how many, and starting them by torchrun's own engine.

Imports torch only when there may be several.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from tessera import paths
from tessera.artifacts.publishing import scratch
from tessera.errors import UserError
from tessera.launch import failures, parents
from tessera.launch.threads import number_of_threads

USE_CPU = "ACCELERATE_USE_CPU"  # Accelerate's own variable: it then uses no GPU, and connects processes by gloo

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


def refuse_several(module: str) -> None:
    """Refuse to be one of several processes, which would all write the same files.

    Raises:
        UserError: a launcher started several.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(f"{module}: runs in one process, was started in {processes}; start it as `python -m {module}`")
    _check_launcher()


def _check_launcher() -> None:
    """Refuse variables of a launcher that no launcher set whole: stray ones would make a run wait for others.

    Raises:
        UserError: one is no number, is missing beside others, or does not fit them.
    """
    numbers = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ}
    fault = next((f"{name} is {value!r}, no number" for name, value in numbers.items() if not value.isdecimal()), None)
    if not fault and numbers:
        size, rank, local = (int(numbers.get(name, low)) for name, low in zip(LAUNCHER, (1, 0, 0), strict=False))
        needed = LAUNCHER if size > 1 else LAUNCHER[:1] if rank or local else ()
        missing = [name for name in needed if name not in os.environ]
        if missing:
            fault = f"{', '.join(numbers)} is set but {missing[0]} is not"
        elif max(rank, local) >= max(1, size):
            fault = f"RANK {rank} and LOCAL_RANK {local} do not fit WORLD_SIZE {size}"
    if fault:
        raise UserError(
            f"the environment variables of a launcher are not whole: {fault}; unset {', '.join(numbers)}, or start the "
            "stage as `python -m`, by torchrun or by `accelerate launch`"
        )


def number_of_processes(wanted: int | None) -> int:
    """How many processes an entry point must start on this machine; 1 means to run in the present one.

    Args:
        wanted: `runtime.processes`. If it is null, there is one process for each GPU, or one on a machine without.

    Raises:
        UserError: there are GPUs, but fewer than the processes wanted; or a launcher's variables are not whole.
    """
    _check_launcher()
    if wanted == 1 or parents.inside_launcher():
        return 1
    gpus = _gpus()
    if wanted is None:
        return max(1, gpus)
    if 0 < gpus < wanted:
        raise UserError(
            f"runtime.processes: {wanted}, but a process needs a GPU of its own and there are {gpus}; lower it, or set "
            f"it to null for one process on each GPU, or set {USE_CPU}=1 in the environment to use no GPU"
        )
    return wanted


def start(count: int, module: str, arguments: list[str], threads: int | None) -> int:
    """Run an entry point in several processes on this machine, wait for them, and return the exit status of them all.

    Signals that this process receives reach the others. It prints the first error of a run that failed, and nothing
    else.

    Args:
        module: the entry point, a dotted name.
        arguments: its command line.
        threads: `runtime.threads`, for each process.
    """
    if not _gpus():
        os.environ[USE_CPU] = "1"
    # torchrun would set this to 1, whatever the machine has.
    os.environ["OMP_NUM_THREADS"] = str(number_of_threads(threads, count))
    os.environ[parents.LAUNCHER_PID] = str(os.getpid())
    # Not in the temporary directory: what a killed run leaves here is deleted by the next one.
    with scratch((paths.STATE / ".launched" / module).absolute()) as folder:
        os.environ[failures.FOLDER] = str(folder)
        return _run(count, [sys.executable, "-u", "-m", module, *arguments], folder)


def leave() -> None:
    """End the connection to the other processes, if there are any. torch warns of a process that ends without this."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _gpus() -> int:
    """The number of GPUs that a run may use."""
    if os.environ.get(USE_CPU, "").lower() in ("1", "true", "yes", "on"):
        return 0
    import torch

    return torch.cuda.device_count()


def _run(count: int, command: list[str], folder: Path) -> int:
    """Run a command in several processes by torchrun's engine. Processes report their errors in `folder`."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # torchrun's own lines; this process does nothing else any more
    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"tessera-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",  # else the machine's name is looked up, which need not be known anywhere
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torchrun")),
        # A signal that is ignored stays so: `nohup` ignores SIGHUP, and shells ignore SIGINT for background jobs.
        signals_to_handle=",".join(s.name for s in handled if signal.getsignal(s) != signal.SIG_IGN),
    )
    program, *arguments = command
    try:
        elastic_launch(config, program)(*arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        ends = {rank: failures.End(each.exitcode, each.timestamp) for rank, each in failed.failures.items()}
        message, status = failures.first_failure(folder, ends)
        if message:
            print(message, file=sys.stderr)
        return status
    return 0
