"""How a stage meets its machine: devices and processes by Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from tessera.distributed import exact_float32, set_threads
from tessera.errors import UserError
from tessera.parameters.training import RuntimeParams

UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA)


def accelerator(runtime: RuntimeParams) -> Accelerator:
    """Devices and processes by Accelerate; threads by the machine, since a launcher may have left us only one.

    Raises:
        UserError: a launcher started several processes that would each train alone, or asks for another way of sharing
            the work than copies of the model.
    """
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)  # codebooks are kept equal by their own update
    # Apple's GPU has no float64, in which likelihoods are measured.
    cpu = torch.backends.mps.is_available()
    # What a launcher's environment may say besides: a launcher's flag must not change a result.
    result = Accelerator(cpu=cpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=[handler])
    if result.distributed_type in UNSUPPORTED:
        raise UserError(
            f"the launcher asks for {result.distributed_type.value}, which is not supported: models fit on one device; "
            "launch with `accelerate launch --multi_gpu`, or --cpu"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) != result.num_processes:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but Accelerate sees {result.num_processes} process(es), which "
            "would each train alone; on CPU set ACCELERATE_USE_CPU=1 in the launcher's environment"
        )
    set_threads(runtime.threads)
    exact_float32()
    return result
