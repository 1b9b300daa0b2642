"""Fit a prior to the codes and publish it in models/prior.

    python -m stage2_prior.train

`stage2_prior.name` in params.yaml says which prior. An interrupted training goes on from its last saved state. Curves,
a summary, and the validation nats of each token are written to results/train_prior.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera import entry, paths
from tessera.parameters import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from tessera.codes.layout import CodeLayout
    from tessera.codes.store import Codes, CodeSplit

USES = ("stage2_prior",)  # the sections of params.yaml that change what this stage makes
MEMORY = "runtime.micro_batch, or stage2_prior.training.batch_size"  # by which it takes less memory

RESULTS = paths.RESULTS / "train_prior"


@dataclass
class Batches:
    """Tokens (B, N) and labels (B,) of a split in order, without extra passes; each iteration begins anew."""

    split: CodeSplit
    batch_size: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for start in range(0, len(self.split), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.split.rows(rows), self.split.label_tensor(rows)


def token_rows(by_token: torch.Tensor, layout: CodeLayout) -> list[dict[str, float]]:
    """The rows of tokens.csv, from nats of each token (N,): its number, level, row, column, depth and nats."""
    names = ("level", "row", "column", "depth")
    places = [dict(zip(names, place, strict=True)) for place in layout.places.tolist()]
    return [
        {"token": i, **place, "nats": nats}
        for i, (place, nats) in enumerate(zip(places, by_token.tolist(), strict=True))
    ]


def _write_untrained(nats: dict[str, float]) -> dict[str, float]:
    """Write the curves and the summary of a prior that is not trained by gradients; returns the summary.

    The curves have one row, so that DVC can draw them.
    """
    from tessera.training.tracking import write_results

    metrics = {**nats, "step": 0, "parameters": 0}
    curves = {"train": [{"step": 0, "loss": nats["nats_per_token"]}], "validation": [{"step": 0, **nats}]}
    write_results(RESULTS, curves, {"validation": metrics})
    return metrics


def configuration(params: Params, codes: Codes) -> dict[str, Any]:
    """What the prior of these codes is built from (`build_prior`), as JSON values."""
    import numpy as np

    chosen = params.stage2_prior.chosen
    config = {**params.stage2_prior.config(), "layout": codes.layout.to_json(), "num_classes": codes.num_classes}
    # A prior knows the null label if training shows it, or if the codes have no other label.
    config["null_label"] = not chosen.learns() or not codes.num_classes or chosen.training.label_dropout > 0
    if codes.classes:
        images = np.bincount(np.asarray(codes["train"].labels), minlength=codes.num_classes).tolist()
        config |= {"class_names": list(codes.classes), "class_images": images}
    return config


def run(params: Params, arguments: argparse.Namespace) -> None:
    """Build the prior, fit or train it, measure it, publish it."""
    from pathlib import Path

    import torch

    from stage2_prior.initial import begin
    from stage2_prior.priors.build import build_prior, prior_config
    from stage2_prior.task import PriorTask, nats_by_level, nats_by_token
    from tessera.artifacts.edited import tell_if_edited
    from tessera.artifacts.files import write_text
    from tessera.artifacts.models import save_model
    from tessera.codes.store import open_codes
    from tessera.console import waiting
    from tessera.launch import devices
    from tessera.randomness import seed_of
    from tessera.training.loop import train
    from tessera.training.saving import Artifact
    from tessera.training.tracking import csv_text, line

    codes = open_codes(paths.CODES)
    made, sizes = [level.codebook_size for level in codes.layout.levels], params.stage1_vqvae.quantizer.chosen.sizes
    now = list(sizes) * (len(made) if len(sizes) == 1 else 1)
    tell_if_edited(paths.CODES, "codes", {"codebooks of stage1_vqvae": made}, {"codebooks of stage1_vqvae": now})
    parents = {"codes": codes.manifest.identity, "vqvae": codes.manifest.parents["vqvae"]}
    name, training = params.stage2_prior.name, getattr(params.stage2_prior.chosen, "training", None)
    config = configuration(params, codes)
    accelerator = devices.accelerator(params.runtime)
    torch.manual_seed(seed_of("initialise", training.seed if training else 0))
    prior = build_prior(config)
    if training and training.initialise_from:
        parents["initial"] = begin(prior, Path(training.initialise_from), parents["vqvae"]).identity
    with waiting("fit of the prior"):
        prior.fit(Batches(codes["train"], params.runtime.batch_size))
    steps = None
    if prior.trained:
        whole = {**prior_config(prior), "training": training.values()}
        task = PriorTask(prior, codes, training)
        artifact = Artifact("prior", prior_config(prior), parents)
        metrics = train("train_prior", task, training, params.runtime, accelerator, whole, artifact)
        steps = training.after(metrics["steps"])
    size = prior.measured_at_once(params.runtime.batch_size)
    prior.to(accelerator.device).eval()
    with waiting("nats of each token"):
        by_token = nats_by_token(prior, codes["validation"], size, accelerator.device)
    if accelerator.is_main_process:
        if not prior.trained:
            nats = {"nats_per_token": by_token.mean().item()}
            metrics = _write_untrained(nats | nats_by_level(by_token, codes.layout))
        write_text(RESULTS / "tokens.csv", csv_text(token_rows(by_token, codes.layout)))
        save_model(paths.PRIOR, "prior", prior_config(prior), prior.state_dict(), parents, steps)
        print(f"{paths.PRIOR}: {name}, validation {line(metrics)}")
    accelerator.wait_for_everyone()


def main(argv: list[str] | None = None) -> int:
    return entry.main(run, __doc__, argv, parallel=True)


if __name__ == "__main__":
    raise SystemExit(main())
