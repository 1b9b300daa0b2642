"""The training task of stage 2: batches, losses and validation of a prior."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from stage2_prior.parameters import PriorTrainingParams  # at run time too: `config` there is code of this stage
from stage2_prior.priors.base import Prior
from tessera.codes.layout import CodeLayout
from tessera.codes.store import Codes, CodeSplit
from tessera.distributed import share, total
from tessera.randomness import SampleOrder, generator, seed_of
from tessera.training.task import Batch, Loss, ParameterGroup, Task


class PriorTask(Task):
    """Trains a prior; its best weights have the smallest nats per token on the validation split.

    The links of a chain (the priors of its levels) are trained independently. Each link is a parameter group with a
    separate loss. Its best weights have the smallest nats per token of its level on the validation split.
    """

    section = "stage2_prior.training"
    criterion = "nats_per_token"

    def __init__(self, model: Prior, codes: Codes, params: PriorTrainingParams) -> None:
        self.model, self.codes, self.params = model, codes, params
        self.order = SampleOrder(len(codes["train"]), params.batch_size, params.seed)
        links = model.chained()
        # The level that each loss is of; empty for a prior that is trained as a whole.
        self.levels: dict[str, int] = {}
        if len(links) > 1:
            self.levels = {f"loss_level_{level}": level for level, link in enumerate(links) if link.trained}
            self.losses = {name: float(links[level].own_tokens) for name, level in self.levels.items()}
        if params.gradient_checkpointing:
            model.checkpoint_gradients()

    def groups(self) -> tuple[ParameterGroup, ...]:
        """One group for each trained link of a chain; one for any other prior."""
        if not self.levels:
            return super().groups()
        return tuple(
            ParameterGroup(
                criterion=f"nats_per_token_level_{level}",
                name=f"level_{level}",
                module=f"links.{level}",
                loss=loss,
            )
            for loss, level in self.levels.items()
        )

    def loss(self, name: str, model: nn.Module, batch: Batch) -> Loss:
        """Mean nats a token, of the whole prior or of a link of a chain."""
        return model(**batch, link=self.levels[name]) if self.levels else model(**batch)

    def batch(self, step: int, rows: slice) -> Batch:
        """int64 `tokens` (rows, N) and `labels` (rows,); float32 `noise` (rows, M) and `progress` (rows,) if the prior
        takes any.

        Some labels are replaced by the null label. Some images' codes come from an extra pass, where the image was
        flipped or shifted.
        """
        train, size = self.codes["train"], self.params.batch_size
        stream = np.random.Generator(np.random.Philox(seed_of("passes", self.params.seed, step)))
        passes = np.zeros(size, dtype=np.int64)
        if train.passes > 1:
            extra = stream.random(size) < self.params.extra_pass_fraction
            passes[extra] = stream.integers(1, train.passes, size)[extra]
        indices = self.order.batch(step)[rows]
        labels = train.label_tensor(indices)
        if labels is None:
            labels = torch.zeros(len(indices), dtype=torch.int64)  # without classes, the null label is 0
        else:
            chances = torch.rand(size, generator=generator("labels", self.params.seed, step))[rows]
            labels = torch.where(chances < self.params.label_dropout, self.codes.num_classes, labels)
        batch = {"tokens": train.rows(indices, passes[rows]), "labels": labels}
        if self.model.noise:
            random = generator("noise", self.params.seed, step)
            batch["noise"] = torch.rand(size, self.model.noise, generator=random)[rows]
        if self.model.paced:
            done = min(1.0, step / (self.params.schedule_steps or self.params.steps))
            batch["progress"] = torch.full((len(indices),), done)
        return batch

    def validate(self) -> dict[str, float]:
        """Nats per token over the validation split, and those of each level if there are several."""
        device = next(self.model.parameters()).device
        by_token = nats_by_token(self.model, self.codes["validation"], self.together, device)
        return {"nats_per_token": by_token.mean().item()} | nats_by_level(by_token, self.codes.layout)


@torch.no_grad()
def nats_by_token(prior: Prior, split: CodeSplit, batch_size: int, device: torch.device) -> torch.Tensor:
    """Mean -log p of each token over a split, given the labels if there are any: float64 (N,), nats.

    The split is divided among the processes.

    Args:
        batch_size: sequences per call of `nll`.
        device: where the prior lives. It is passed in because a prior without weights has no device of its own.
    """
    nats = torch.zeros(prior.layout.num_tokens, dtype=torch.float64)
    for rows in share(len(split), batch_size):
        labels = split.label_tensor(rows)
        found = prior.nll(split.rows(rows).to(device), labels if labels is None else labels.to(device))
        nats += found.double().sum(0).cpu()
    return torch.tensor(total(nats.tolist(), device), dtype=torch.float64) / len(split)


def nats_by_level(by_token: torch.Tensor, layout: CodeLayout) -> dict[str, float]:
    """Mean nats per token of each level, coarsest first, from nats of each token (N,); {} if there is one level."""
    if len(layout.levels) == 1:
        return {}
    return {f"nats_per_token_level_{i}": by_token[part].mean().item() for i, part in enumerate(layout.slices())}
