"""Train the VQ-VAE on the prepared images and publish it in models/vqvae.

    accelerate launch -m stage1_vqvae.train

Uses one CPU, one GPU or all GPUs, whatever `accelerate launch` finds; an interrupted run goes on from its last saved
state. Leaves curves, a summary and reconstruction grids in results/train_vqvae.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from common import command, paths
from common.params import Params

if TYPE_CHECKING:
    from common.images import ImageSplit
    from stage1_vqvae.model import VQVAE

RESULTS = paths.RESULTS / "train_vqvae"
GRID_IMAGES = 32


def save_reconstructions(model: VQVAE, split: ImageSplit, name: str) -> None:
    """Save the first images of a split, each above its reconstruction."""
    import torch

    from common.grids import pairs_grid, save_grid
    from common.images import to_float, to_uint8

    pixels = split.pixels(slice(0, GRID_IMAGES))
    device = next(model.parameters()).device
    with torch.no_grad():
        images = model.decode(model.encode(to_float(pixels.to(device)))).cpu()
    save_grid(pairs_grid(pixels, to_uint8(images)), RESULTS / "images" / f"{name}.png")


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build, train, publish."""
    import torch

    from common.artifacts import save_model
    from common.checkpoint import StateFolder, fingerprint
    from common.images import open_prepared
    from common.randomness import seed_of
    from common.tracking import write_results
    from common.training import Trainer, accelerator
    from stage1_vqvae.model import VQVAE
    from stage1_vqvae.task import VQVAETask

    prepared = open_prepared(paths.PREPARED)
    section = params.stage1_vqvae
    config = {
        "image_shape": list(prepared.stats.image_shape),
        "data_variance": prepared.stats.variance,
        "network": section.network.chosen_values(),
        "quantizer": section.quantizer.chosen_values(),
        "likelihood": section.likelihood.chosen_values(),
    }
    parents = {"prepared": prepared.manifest.identity}
    device = accelerator(params.runtime)
    torch.manual_seed(seed_of("initialise", section.training.seed))
    task = VQVAETask(
        VQVAE(config),
        prepared["train"],
        prepared["validation"],
        section.training,
        section.augmentation,
        params.runtime.batch_size,
    )
    whole = {**config, "augmentation": section.augmentation.values(), "training": section.training.values()}
    with StateFolder("train_vqvae", fingerprint("train_vqvae", whole, parents), device.is_main_process) as state:
        progress = Trainer(task, section.training, params.runtime, device, state).run()
    metrics = {**progress.best_metrics, "step": progress.best_step}
    if device.is_main_process:
        tensors = {name: tensor.contiguous() for name, tensor in task.model.state_dict().items()}
        save_model(paths.VQVAE, "vqvae", config, tensors, parents)
        write_results(RESULTS, {"train": progress.train, "validation": progress.validation}, {"validation": metrics})
        save_reconstructions(task.model, prepared["train"], "train")
        save_reconstructions(task.model, prepared["validation"], "validation")
        print(f"{paths.VQVAE}: validation " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    device.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return command.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
