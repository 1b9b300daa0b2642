"""Is the memory that a training says it expects what its steps take?

    python benchmarks/step_memory.py train_vqvae|train_prior [--batch 128] [--width 64] [--json FILE]

Takes three steps on random 32x32 images or their codes, eager and in fp32, and compares what `tessera.training.needs`
says with the growth of resident memory. Linux only. Run it with MALLOC_MMAP_THRESHOLD_=65536, or freed memory of small
tensors stays resident.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from runs import parameters
from timing import forget_peak, resident

from tessera.cli.start.rehearsal import image_stats, prior_task, vqvae_task
from tessera.launch.devices import accelerator, set_threads
from tessera.training.checkpoint import StateFolder
from tessera.training.loop import Trainer
from tessera.training.needs import needs

MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train_vqvae", "train_prior"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="channels of the VQ-VAE, or width of the prior")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    section = {"train_vqvae": "stage1_vqvae", "train_prior": "stage2_prior"}[options.stage]
    width = {"stage1_vqvae.network.conv.channels": options.width}
    if options.stage == "train_prior":
        width = {"stage2_prior.width": options.width, "stage2_prior.layers": 6, "stage2_prior.heads": 4}
    plain = {f"{section}.training.{name}": False for name in ("compile", "channels_last")}
    changes = plain | width | {f"{section}.training.precision": "fp32", f"{section}.training.batch_size": options.batch}
    params = parameters(changes)
    set_threads(1)
    task, training = vqvae_task(params, image_stats(params)), params.stage1_vqvae.training
    if options.stage == "train_prior":
        task, training = prior_task(params, task.vqvae.layout, 10), params.stage2_prior.chosen.training
    said = needs(task, training).memory(options.batch) / MEGABYTE
    weights = sum(tensor.nbytes for tensor in task.model.state_dict().values()) / MEGABYTE
    before = resident()
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        state = StateFolder(options.stage, "memory", exclusive=False)
        trainer = Trainer(task, training, params.runtime, accelerator(params.runtime), state)
        for step in range(3):
            trainer.stepper.take(step, task.batch(step, slice(None)), trainer.progress)
        os.chdir("/")
    taken = resident(peak=True) - before + weights
    print(f"{options.stage}, batch {options.batch}, width {options.width}: {said:.0f} MB said, {taken:.0f} MB taken")
    if options.json:
        options.json.write_text(json.dumps({"said": said, "taken": taken}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
