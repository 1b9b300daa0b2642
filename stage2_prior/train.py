"""Fit a prior to the codes and publish it in models/prior.

    accelerate launch -m stage2_prior.train

Which prior is `stage2_prior.name`; swapping it touches nothing of stage 1. An interrupted run goes on from its last
saved state. Leaves curves and validation nats per token in results/train_prior.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from common import command, paths
from common.params import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from common.codes import CodeSplit

RESULTS = paths.RESULTS / "train_prior"


def batches(split: CodeSplit, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Tokens and labels of a split as it is (no extra passes), in order."""
    for start in range(0, len(split), batch_size):
        rows = slice(start, start + batch_size)
        yield split.rows(rows), split.label_tensor(rows)


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build, fit or train, publish."""
    import torch

    from common.artifacts import read_manifest, save_model
    from common.codes import open_codes
    from common.randomness import seed_of
    from common.tracking import write_results
    from common.training import accelerator, train
    from stage2_prior.priors import build_prior, prior_config
    from stage2_prior.task import PriorTask, nats_per_token

    codes = open_codes(paths.CODES)
    # Codes of another VQ-VAE than the one published beside them would make a prior that decodes to nothing.
    codes.manifest.require_parent("vqvae", read_manifest(paths.VQVAE, "vqvae", contents=False).identity, paths.CODES)
    parents = {"codes": codes.manifest.identity, "vqvae": codes.manifest.parents["vqvae"]}
    name, section = params.stage2_prior.name, params.stage2_prior.chosen
    values = {key: value for key, value in section.values().items() if key != "training"}
    config = {"name": name, "params": values, "layout": codes.layout.to_json(), "num_classes": codes.num_classes}
    device = accelerator(params.runtime)
    torch.manual_seed(seed_of("initialise", section.training.seed if hasattr(section, "training") else 0))
    prior = build_prior(config)
    if prior.trained:
        task, training = PriorTask(prior, codes, section.training), section.training
        whole = {**config, "training": training.values()}
        metrics = train("train_prior", task, training, params.runtime, device, whole, parents)
    else:
        prior.fit(batches(codes["train"], params.runtime.batch_size))
        size = params.runtime.batch_size
        nats = nats_per_token(prior.to(device.device), codes["validation"], size, device.device)
        metrics = {"nats_per_token": nats, "step": 0, "parameters": 0}
        curves = {"train": [{"step": 0, "loss": nats}], "validation": [{"step": 0, "nats_per_token": nats}]}
        if device.is_main_process:
            write_results(RESULTS, curves, {"validation": metrics})
    if device.is_main_process:
        tensors = {key: tensor.contiguous() for key, tensor in prior.state_dict().items()}
        save_model(paths.PRIOR, "prior", prior_config(prior), tensors, parents)
        print(f"{paths.PRIOR}: {name}, validation " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    device.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return command.main(run, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
