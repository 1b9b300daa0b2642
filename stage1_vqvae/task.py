"""What the training loop asks of stage 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from common.augment import augment
from common.codes import CodeLayout
from common.distributed import share, sum_over_processes, total
from common.images import ImageSplit, to_float
from common.params.stage1 import AugmentationParams, Stage1TrainingParams
from common.randomness import SampleOrder, generator
from stage1_vqvae.model import VQVAE

LN2 = 0.6931471805599453


class VQVAETask:
    """Batches, codebook care and validation of a VQ-VAE (see common.training.Task)."""

    def __init__(
        self,
        model: VQVAE,
        train: ImageSplit,
        validation: ImageSplit,
        params: Stage1TrainingParams,
        augmentation: AugmentationParams,
        evaluation_batch: int,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.params, self.augmentation, self.evaluation_batch = params, augmentation, evaluation_batch
        self.order = SampleOrder(len(train), params.batch_size, params.seed)
        self.not_averaged = model.codebook_parameters

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _chunks(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 pixels and float images of `count` training images drawn once, for fits; the same on every process."""
        order = SampleOrder(len(self.train), min(count, len(self.train)), self.params.seed).batch(0)
        size = self.params.batch_size  # not the runtime's, which must not reach a codebook even by rounding
        for start in range(0, len(order), size):
            pixels = self.train.pixels(order[start : start + size])
            yield pixels, to_float(pixels.to(self.device))

    def start(self) -> None:
        self.model.start(lambda: (images for _, images in self._chunks(self.params.codebook_images)), self.params.seed)

    def settle(self) -> None:
        self.model.settle(lambda: (images for _, images in self._chunks(self.params.codebook_images)))

    def compile(self) -> None:
        self.model.compile()

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        pixels = self.train.pixels(self.order.batch(step))  # the whole global batch, so that draws do not depend on
        random = generator("augment", self.params.seed, step)  # how it is split over processes
        pixels = augment(pixels, self.augmentation.horizontal_flip, self.augmentation.shift, random)
        return {"images": pixels[rows]}

    def update(self, step: int) -> dict[str, torch.Tensor]:
        return self.model.update(step, self.params.seed)

    def discard(self) -> None:
        self.model.discard()

    @torch.no_grad()
    def fit_likelihood(self) -> None:
        """Fit what the likelihood leaves open, on training images with the weights as they are."""
        count = self.model.likelihood.fit_images
        if count:
            self.model.likelihood.fit(
                (self.model.decode_parameters(self.model.encode(images)), pixels)
                for pixels, images in self._chunks(count)
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures over the whole validation split: distortion under the training loss, NMSE, the distortion in bits per
        dimension (the likelihood first fitted, on training images), codebook usage and perplexity."""
        self.fit_likelihood()
        layout: CodeLayout = self.model.layout
        distortion = squared = nats = 0.0
        counts = [torch.zeros(level.codebook_size, dtype=torch.int64, device=self.device) for level in layout.levels]
        for rows in share(len(self.validation), self.evaluation_batch):
            pixels = self.validation.pixels(rows).to(self.device)
            images = to_float(pixels)
            codes = self.model.encode(images)
            parameters = self.model.decode_parameters(codes)
            variance = self.model.config["data_variance"]
            distortion += self.model.likelihood.loss(parameters, images, variance).item() * len(images)
            nats += self.model.likelihood.nll(parameters, pixels).sum().item()
            error = (self.model.likelihood.mean(parameters) - images).square()
            squared += error.mean().item() / variance * len(images)
            for used_by, code in zip(counts, codes, strict=True):
                used_by += torch.bincount(code.flatten(), minlength=len(used_by))
        count = len(self.validation)
        distortion, squared, nats = total([distortion, squared, nats], self.device)
        bits = nats / (count * layout.dimensions * LN2)
        figures = {"distortion": distortion / count, "nmse": squared / count, "bits_per_dim_distortion": bits}
        for level, used_by in enumerate(counts):
            shares = sum_over_processes(used_by).cpu().double() / used_by.sum().item()
            used, perplexity = (shares > 0).double().mean().item(), torch.special.entr(shares).sum().exp().item()
            for name, value in (("codebook_usage", used), ("perplexity", perplexity)):
                figures[name] = figures.get(name, 0.0) + value / len(counts)  # the mean over levels
                if len(counts) > 1:
                    figures[f"{name}_level{level}"] = value
        return {"criterion": figures["distortion"], **figures}
