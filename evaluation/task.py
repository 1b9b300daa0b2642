"""What the training loop asks of the classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from evaluation.parameters import ClassifierParams
from tessera.distributed import batch_share, share, total
from tessera.features.classifier import Judge
from tessera.images.augment import augment
from tessera.images.prepared import ImageSplit
from tessera.randomness import SampleOrder, generator


class JudgeTask:
    """Batches and validation of the classifier (see tessera.training.loop.Task)."""

    def __init__(self, model: Judge, train: ImageSplit, validation: ImageSplit, params: ClassifierParams) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.params = params
        self.order = SampleOrder(len(train), params.training.batch_size, params.training.seed)
        self.not_averaged: frozenset[str] = frozenset()

    def start(self) -> None:
        """Nothing is initialised from data."""

    def settle(self) -> None:
        """Everything is averaged."""

    def discard(self) -> None:
        """The forward pass gathers nothing."""

    def compile(self) -> None:
        self.model.blocks.compile()

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        indices = self.order.batch(step)
        random = generator("augment", self.params.training.seed, step)
        pixels = augment(self.train.pixels(indices), False, self.params.shift, random)
        return {"pixels": pixels[rows], "labels": self.train.label_tensor(indices)[rows]}

    def update(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy in nats an image, and accuracy, over the whole validation split."""
        device = next(self.model.parameters()).device
        nats = hits = 0.0
        for rows in share(len(self.validation), batch_share(self.params.training.batch_size)):
            logits = self.model.logits(self.validation.pixels(rows).to(device))
            labels = self.validation.label_tensor(rows).to(device)
            nats += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(-1) == labels).sum().item()
        nats, hits = total([nats, hits], device)
        loss = nats / len(self.validation)
        return {"criterion": loss, "cross_entropy": loss, "accuracy": hits / len(self.validation)}
