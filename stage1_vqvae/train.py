"""Train the VQ-VAE on the prepared images and publish it in models/vqvae.

    python -m stage1_vqvae.train

Uses one CPU, one GPU or all GPUs of the machine. An interrupted training goes on from its last saved state. Curves and
a summary are written to results/train_vqvae.
"""

from __future__ import annotations

import argparse

from tessera import entry, paths
from tessera.parameters import Params

USES = ("stage1_vqvae",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.micro_batch, or stage1_vqvae.training.batch_size"  # by which it takes less memory


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build the VQ-VAE, train it, publish it."""
    from pathlib import Path

    import torch

    from stage1_vqvae.initial import begin
    from stage1_vqvae.model import VQVAE
    from stage1_vqvae.sharpening import task_of
    from tessera.artifacts.edited import tell_if_edited
    from tessera.artifacts.models import save_model
    from tessera.images.prepared import open_prepared
    from tessera.launch import devices
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.saving import Artifact
    from tessera.training.tracking import line

    prepared = open_prepared(paths.PREPARED)
    tell_if_edited(
        paths.PREPARED, "prepared", {"data": prepared.stats.preparation}, {"data": params.data.preparation()}
    )
    section = params.stage1_vqvae
    config = section.config(prepared.stats)
    parents = {"prepared": prepared.manifest.identity}
    accelerator = devices.accelerator(params.runtime)
    torch.manual_seed(seed_of("initialise", section.training.seed))
    model = VQVAE(config)
    if section.training.initialise_from:
        parents["initial"] = begin(model, Path(section.training.initialise_from)).identity
    task = task_of(section, model, prepared["train"], prepared["validation"])
    whole = {**config, "augmentation": section.augmentation.values(), "training": section.training.values()}
    whole |= {"inputs": dict(task.inputs_used)} if task.inputs_used else {}
    artifact = Artifact("vqvae", config, parents)
    metrics = train("train_vqvae", task, section.training, params.runtime, accelerator, whole, artifact)
    if accelerator.is_main_process:
        save_model(
            paths.VQVAE, "vqvae", config, task.vqvae.state_dict(), parents, section.training.after(metrics["steps"])
        )
        print(f"{paths.VQVAE}: validation {line(metrics)}")
    accelerator.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
