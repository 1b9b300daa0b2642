"""The training task of the classifier: batches, loss and validation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessera.distributed import share, total
from tessera.features.classifiers.base import Classifier
from tessera.images.augment import augment
from tessera.images.prepared import ImageSplit
from tessera.parameters.training import TrainingParams
from tessera.randomness import SampleOrder, generator
from tessera.training.task import Batch, Task


class ClassifierTask(Task):
    """Trains a classifier; its best weights have the smallest cross-entropy on the validation split."""

    section = "classifier.training"
    criterion = "cross_entropy"
    shown = "accuracy"

    def __init__(
        self, model: Classifier, train: ImageSplit, validation: ImageSplit, shift: int, training: TrainingParams
    ) -> None:
        """`shift`: training images are shifted at random by up to so many pixels each way."""
        self.model, self.train, self.validation = model, train, validation
        self.shift, self.training = shift, training
        self.order = SampleOrder(len(train), training.batch_size, training.seed)

    def compile(self) -> None:
        """Compile the layers that take the time."""
        self.model.compile_blocks()

    def batch(self, step: int, rows: slice) -> Batch:
        """uint8 `pixels`, each image shifted at random, and int64 `labels`."""
        indices = self.order.batch(step)
        random = generator("augment", self.training.seed, step)
        pixels = augment(self.train.pixels(indices[rows]), False, self.shift, random, len(indices), rows)
        return {"pixels": pixels, "labels": self.train.label_tensor(indices[rows])}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy in nats per image, and accuracy, over the whole validation split."""
        device = next(self.model.parameters()).device
        nats = hits = 0.0
        for rows in share(len(self.validation), self.together):
            logits = self.model.logits(self.validation.pixels(rows).to(device))
            labels = self.validation.label_tensor(rows).to(device)
            nats += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(-1) == labels).sum().item()
        nats, hits = total([nats, hits], device)
        return {"cross_entropy": nats / len(self.validation), "accuracy": hits / len(self.validation)}
