"""Fit a prior to the codes and publish it in models/prior.

    python -m stage2_prior.train

Which prior is `stage2_prior.name`; swapping it touches nothing of stage 1. An interrupted run goes on from its last
saved state. Leaves curves and validation nats per token, by place too, in results/train_prior.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from tessera.codes.layout import CodeLayout
    from tessera.codes.store import CodeSplit

USES = ("stage2_prior",)  # the sections of params.yaml that change what this stage makes

RESULTS = paths.RESULTS / "train_prior"


@dataclass
class Batches:
    """Tokens and labels of a split as it is (no extra passes), in order; may be gone through again."""

    split: CodeSplit
    batch_size: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for start in range(0, len(self.split), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.split.rows(rows), self.split.label_tensor(rows)


def token_rows(by_token: torch.Tensor, layout: CodeLayout) -> list[dict[str, float]]:
    """Nats of each token, (N,), as rows with its level, row, column and depth; `step` counts tokens."""
    names = ("level", "row", "column", "depth")
    places = [dict(zip(names, place, strict=True)) for place in layout.places.tolist()]
    return [
        {"step": i, **place, "nats": nats}
        for i, (place, nats) in enumerate(zip(places, by_token.tolist(), strict=True))
    ]


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build, fit or train, publish."""
    import torch

    from stage2_prior.priors.build import build_prior, prior_config
    from stage2_prior.task import PriorTask, nats_by_level, nats_by_token
    from tessera.artifacts.files import write_text
    from tessera.artifacts.models import save_model
    from tessera.codes.store import open_codes
    from tessera.distributed import batch_share
    from tessera.launch.devices import accelerator
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.tracking import csv_text, write_results

    codes = open_codes(paths.CODES)
    parents = {"codes": codes.manifest.identity, "vqvae": codes.manifest.parents["vqvae"]}
    name, section = params.stage2_prior.name, params.stage2_prior.chosen
    config = {**params.stage2_prior.config(), "layout": codes.layout.to_json(), "num_classes": codes.num_classes}
    device = accelerator(params.runtime)
    torch.manual_seed(seed_of("initialise", section.training.seed if hasattr(section, "training") else 0))
    prior = build_prior(config)
    prior.fit(Batches(codes["train"], params.runtime.batch_size))
    if prior.trained:
        task, training = PriorTask(prior, codes, section.training), section.training
        prior.null_label = not codes.num_classes or training.label_dropout > 0
        whole = {**prior_config(prior), "training": training.values()}
        metrics = train("train_prior", task, training, params.runtime, device, whole, parents)
    size = prior.measured_at_once(batch_share(params.runtime.batch_size))
    by_token = nats_by_token(prior.to(device.device).eval(), codes["validation"], size, device.device)
    if not prior.trained:
        nats = {"nats_per_token": by_token.mean().item(), **nats_by_level(by_token, codes.layout)}
        metrics = {**nats, "step": 0, "parameters": 0}
        curves = {"train": [{"step": 0, "loss": nats["nats_per_token"]}], "validation": [{"step": 0, **nats}]}
        if device.is_main_process:
            write_results(RESULTS, curves, {"validation": metrics})
    if device.is_main_process:
        write_text(RESULTS / "tokens.csv", csv_text(token_rows(by_token, codes.layout)))
        save_model(paths.PRIOR, "prior", prior_config(prior), prior.state_dict(), parents)
        print(f"{paths.PRIOR}: {name}, validation " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    device.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
