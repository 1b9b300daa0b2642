"""What the training loop asks of stage 2."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from common.codes import Codes, CodeSplit
from common.distributed import batch_share, share, total
from common.params.stage2 import PriorTrainingParams
from common.randomness import SampleOrder, generator, seed_of


class PriorTask:
    """Batches and validation of a prior (see common.training.Task)."""

    not_averaged: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, codes: Codes, params: PriorTrainingParams) -> None:
        self.model, self.codes, self.params = model, codes, params
        self.order = SampleOrder(len(codes["train"]), params.batch_size, params.seed)

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
        return {"tokens": train.rows(indices[rows], passes[rows]), "labels": labels[rows]}

    def validate(self) -> dict[str, float]:
        device, size = next(self.model.parameters()).device, batch_share(self.params.batch_size)
        nats = nats_per_token(self.model, self.codes["validation"], size, device)
        return {"criterion": nats, "nats_per_token": nats}


@torch.no_grad()
def nats_per_token(prior: nn.Module, split: CodeSplit, batch_size: int, device: torch.device) -> float:
    """Mean -log p over a split's tokens, given its labels where there are any; the work is divided over processes.

    `device` is where the prior is: one without weights cannot tell.
    """
    nats = 0.0
    for rows in share(len(split), batch_size):
        labels = split.label_tensor(rows)
        nats += prior.nll(split.rows(rows).to(device), labels if labels is None else labels.to(device)).sum().item()
    (nats,) = total([nats], device)
    return nats / (len(split) * prior.layout.num_tokens)
