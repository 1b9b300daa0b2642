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

# How many seconds torchrun waits, after a signal, for processes that save, before it kills them. By default it is 30,
# which a validation may take. Versions of torch that do not know the variable wait 30 seconds all the same.
SHUTDOWN_TIMEOUT, SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 600


def refuse_several(module: str) -> None:
    """Refuse to be one of several processes, which would all write the same files.

    Raises:
        UserError: a launcher started several.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(f"{module}: runs in one process, was started in {processes}; start it as `python -m {module}`")
    parents.check_variables()


def number_of_processes(wanted: int | None) -> int:
    """How many processes an entry point must start on this machine; 1 means to run in the present one.

    Args:
        wanted: `runtime.processes`. If it is null, there is one process for each GPU, or one on a machine without.

    Raises:
        UserError: there are GPUs, but fewer than the processes wanted; or a launcher's variables are not whole.
    """
    parents.check_variables()
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
    os.environ.setdefault(SHUTDOWN_TIMEOUT, str(SECONDS))
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
