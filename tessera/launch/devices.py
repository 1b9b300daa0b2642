"""How a stage uses its machine: the device, the processes it is one of, threads, and the precision of float32."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from tessera.errors import UserError
from tessera.launch.threads import number_of_threads

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tessera.parameters.training import RuntimeParams


# How long processes that work apart wait for the slowest one, and for what the main process writes. By default torch
# ends the run after 10 to 30 minutes. Nobody waits in vain: torchrun notices at once when a process ends.
APART = timedelta(days=7)


def accelerator(runtime: RuntimeParams, apart: bool = False) -> Accelerator:
    """The device and the processes of this run, as Accelerate finds them. Sets threads and exact float32 too.

    The launcher's environment decides how many processes there are and on what. Its other flags have no effect: the
    precision and the compiler are parameters of a stage.

    Args:
        apart: whether each process works by itself for long, so that others wait for it for up to `APART`.

    Raises:
        UserError: Accelerate does not see the processes that a launcher started, so each would do all of the work; or
            the launcher asks for a way of sharing the work other than one copy of the model for each process.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    # Codebooks are buffers. Their own update keeps them equal on all processes, so DDP need not send them at each step.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if apart:
        handlers.append(InitProcessGroupKwargs(timeout=APART))
    # Likelihoods are measured in float64, which Apple's GPU does not have.
    apple = torch.backends.mps.is_available()
    # Without a GPU, Accelerate connects a launcher's processes only if it is told to use the CPU. Otherwise each would
    # work alone.
    launched_without_gpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    cpu = apple or launched_without_gpu
    result = Accelerator(cpu=cpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=handlers)
    unsupported = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA)
    if result.distributed_type in unsupported:
        raise UserError(
            f"the launcher asks for {result.distributed_type.value}, which is not supported: models fit on one device; "
            "start the stage as `python -m`, which uses all GPUs by itself, or by `accelerate launch --multi_gpu`"
        )
    if os.environ.get("WORLD_SIZE", "1") != str(result.num_processes):
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but Accelerate sees {result.num_processes} process(es), which "
            "would each do all of the work; start the stage as `python -m`, which starts its processes by itself, or "
            "unset WORLD_SIZE if no launcher set it"
        )
    if result.num_processes > 1:
        _ignore_warnings_of_ddp()
    # On a machine with CUDA's compiler and no GPU, torch.compile warns of that.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    configure_torch(runtime.threads)
    return result


def _ignore_warnings_of_ddp() -> None:
    """Suppress two warnings of DDP. Every process would print them, and no user can act on them.

    The first is about the name of an option that newer versions of torch have renamed. Accelerate still uses the old
    name. The second is about an extra copy of some gradients. It appears for convolutions over one channel, where the
    copy is a few kilobytes.
    """
    warnings.filterwarnings("ignore", r"`broadcast_buffers` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", r"Grad strides do not match bucket view strides", UserWarning)


def configure_torch(threads: int | None) -> None:
    """Set how many threads torch uses, and have it compute float32 without TF32 on a GPU.

    Args:
        threads: `runtime.threads`. None: OMP_NUM_THREADS, or else the cores that the machine offers to this process.
    """
    set_threads(threads)
    exact_float32()


def set_threads(threads: int | None) -> None:
    """Have torch use this many threads, or (None) as many as the machine offers to this process."""
    torch.set_num_threads(number_of_threads(threads))


def helper(device: torch.device) -> ThreadPoolExecutor:
    """One thread that works beside the calling one, which computes on this device.

    Beside a CPU it computes alone. It would else have a team of threads of its own. libgomp would then count more
    threads than cores, and its threads would sleep after every operation, whatever GOMP_SPINCOUNT says.
    """
    pool = ThreadPoolExecutor(1)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        pool.submit(_compute_alone).result()
        torch.set_num_threads(threads)  # of threads that begin later
    return pool


def _compute_alone() -> None:
    """Have the calling thread compute without other threads."""
    torch.get_num_threads()  # the first call in a thread takes the number of all threads over
    torch.set_num_threads(1)


def exact_float32() -> None:
    """Have a GPU compute in full float32. By default torch cuts inputs of convolutions to 10 mantissa bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
