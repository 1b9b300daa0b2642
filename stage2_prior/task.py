"""What the training loop asks of stage 2."""

from __future__ import annotations

import numpy as np
import torch

from stage2_prior.parameters import PriorTrainingParams
from stage2_prior.priors.base import Prior
from tessera.codes.layout import CodeLayout
from tessera.codes.store import Codes, CodeSplit
from tessera.distributed import batch_share, share, total
from tessera.randomness import SampleOrder, generator, seed_of


class PriorTask:
    """Batches and validation of a prior (see tessera.training.loop.Task)."""

    not_averaged: frozenset[str] = frozenset()

    def __init__(self, model: Prior, codes: Codes, params: PriorTrainingParams) -> None:
        self.model, self.codes, self.params = model, codes, params
        self.order = SampleOrder(len(codes["train"]), params.batch_size, params.seed)
        if params.gradient_checkpointing:
            model.checkpoint_gradients()

    def start(self) -> None:
        """A prior starts from its random weights."""

    def settle(self) -> None:
        """A prior has nothing that a weight average leaves out."""

    def discard(self) -> None:
        """A prior gathers nothing."""

    def update(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    def compile(self) -> None:
        self.model.compile()

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        train, size = self.codes["train"], self.params.batch_size
        stream = np.random.Generator(np.random.Philox(seed_of("passes", self.params.seed, step)))
        passes = np.zeros(size, dtype=np.int64)
        if train.passes > 1:
            extra = stream.random(size) < self.params.extra_pass_fraction
            passes[extra] = stream.integers(1, train.passes, size)[extra]
        indices = self.order.batch(step)
        labels = train.label_tensor(indices)
        if labels is None:
            labels = torch.zeros(size, dtype=torch.int64)  # the null label of a prior without classes
        else:
            dropped = (
                torch.rand(size, generator=generator("labels", self.params.seed, step)) < self.params.label_dropout
            )
            labels = torch.where(dropped, self.codes.num_classes, labels)
        batch = {"tokens": train.rows(indices[rows], passes[rows]), "labels": labels[rows]}
        if self.model.noise:
            random = generator("noise", self.params.seed, step)
            batch["noise"] = torch.rand(size, self.model.noise, generator=random)[rows]
        return batch

    def validate(self) -> dict[str, float]:
        device, size = next(self.model.parameters()).device, batch_share(self.params.batch_size)
        by_token = nats_by_token(self.model, self.codes["validation"], size, device)
        nats = by_token.mean().item()
        return {"criterion": nats, "nats_per_token": nats} | nats_by_level(by_token, self.codes.layout)


@torch.no_grad()
def nats_by_token(prior: Prior, split: CodeSplit, batch_size: int, device: torch.device) -> torch.Tensor:
    """Mean -log p of each token over a split, float64 (N,), given its labels where there are any; the work is divided
    over processes.

    `device` is where the prior is: one without weights cannot tell.
    """
    nats = torch.zeros(prior.layout.num_tokens, dtype=torch.float64)
    for rows in share(len(split), batch_size):
        labels = split.label_tensor(rows)
        found = prior.nll(split.rows(rows).to(device), labels if labels is None else labels.to(device))
        nats += found.double().sum(0).cpu()
    return torch.tensor(total(nats.tolist(), device), dtype=torch.float64) / len(split)


def nats_by_level(by_token: torch.Tensor, layout: CodeLayout) -> dict[str, float]:
    """Each level's mean nats a token, coarsest first; nothing where there is one level."""
    if len(layout.levels) == 1:
        return {}
    return {f"nats_per_token_level_{i}": by_token[part].mean().item() for i, part in enumerate(layout.slices())}
