"""Sampling and evaluation run in one process."""

from __future__ import annotations

import os

from common.distributed import set_threads
from common.errors import UserError
from common.params.training import RuntimeParams


def one_process(runtime: RuntimeParams, module: str) -> None:
    """Set the number of threads, and refuse to be one of several processes that would all write the same files.

    Raises:
        UserError: a launcher started several processes.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(f"{module}: runs in one process, was started in {processes}; start it as `python -m {module}`")
    set_threads(runtime.threads)
