"""What the training loop asks of stage 1."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stage1_vqvae.codebooks import initialise_codebooks, re_estimate_codebooks
from stage1_vqvae.model import VQVAE
from stage1_vqvae.parameters import AugmentationParams, Stage1TrainingParams
from stage1_vqvae.quantizers.output import QuantizerOutput
from tessera.codes.figures import CodeCounts
from tessera.codes.layout import CodeLayout
from tessera.distributed import batch_share, share, sum_over_processes, total
from tessera.images.augment import augment
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.randomness import SampleOrder, generator, seed_of

TOGETHER = 64  # images that a fit encodes at a time; no parameter's, so that none reaches a codebook even by rounding
ROUNDING = 1e-12  # of a mean of float64 squares: where targets vary by no more, they do not vary


class VQVAETask:
    """Batches, codebook care and validation of a VQ-VAE (see tessera.training.loop.Task)."""

    def __init__(
        self,
        model: VQVAE,
        train: ImageSplit,
        validation: ImageSplit,
        params: Stage1TrainingParams,
        augmentation: AugmentationParams,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.params, self.augmentation = params, augmentation
        self.order = SampleOrder(len(train), params.batch_size, params.seed)
        self.not_averaged = model.re_estimated_parameters

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _chunks(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 pixels and float images of `count` training images drawn once, for fits; the same on every process."""
        order = SampleOrder(len(self.train), min(count, len(self.train)), self.params.seed).batch(0)
        for start in range(0, len(order), TOGETHER):
            pixels = self.train.pixels(order[start : start + TOGETHER])
            yield pixels, to_float(pixels.to(self.device))

    def _codebook_images(self) -> Iterator[torch.Tensor]:
        """Float images from which codebooks are computed, in batches; the same at each call and on every process."""
        return (images for _, images in self._chunks(self.params.codebook_images))

    def start(self) -> None:
        initialise_codebooks(self.model, self._codebook_images, self.params.seed)

    def settle(self) -> None:
        re_estimate_codebooks(self.model, self._codebook_images)

    def compile(self) -> None:
        self.model.compile()

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        pixels = self.train.pixels(self.order.batch(step))  # the whole global batch, so that draws do not depend on
        random = generator("augment", self.params.seed, step)  # how it is split over processes
        pixels = augment(pixels, self.augmentation.horizontal_flip, self.augmentation.shift, random)
        batch = {"images": pixels[rows]}
        if self.model.stochastic:
            seeds = [seed_of("codes", self.params.seed, step, row) for row in range(len(pixels))]
            batch["seeds"] = torch.tensor(seeds)[rows]
        return batch

    def update(self, step: int) -> dict[str, torch.Tensor]:
        return self.model.update(step, self.params.seed)

    def discard(self) -> None:
        self.model.discard()

    @torch.no_grad()
    def fit_likelihood(self) -> None:
        """Fit what the likelihood leaves open, on training images with the weights as they are."""
        count = self.model.likelihood.fit_images
        if count:
            pairs = (
                (self.model.decode_parameters(self.model.encode(images)), pixels)
                for pixels, images in self._chunks(count)
            )
            self.model.likelihood.fit(pairs, min(count, len(self.train)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures over the whole validation split: distortion under the training loss, NMSE, the distortion in bits per
        dimension (the likelihood first fitted, on training images), codebook usage and perplexity, and the quantization
        error: the mean squared difference of a target and its code, and that over the targets' variance."""
        self.fit_likelihood()
        layout: CodeLayout = self.model.layout
        variance, count = self.model.config["data_variance"], len(self.validation)
        sums = [0.0, 0.0, 0.0]  # of the training loss, of squared errors over the variance, of nats
        counts = CodeCounts(layout, self.device)
        errors = [Spread(self.model.quantizer_of(level).code_dim) for level in range(len(layout.levels))]
        for rows in share(count, batch_share(self.params.batch_size)):
            pixels = self.validation.pixels(rows).to(self.device)
            images = to_float(pixels)
            outputs = self.model.quantize(images)
            codes = [output.indices for output in outputs]
            parameters = self.model.decode_parameters(codes)
            sums[0] += self.model.likelihood.loss(parameters, images, variance).item() * len(images)
            squares = (self.model.likelihood.mean(parameters) - images).square()
            sums[1] += squares.mean().item() / variance * len(images)
            sums[2] += self.model.likelihood.nll(parameters, pixels).sum().item()
            counts.add(codes)
            for error, output in zip(errors, outputs, strict=True):
                error.add(output)
        distortion, squared, nats = (value / count for value in total(sums, self.device))
        figures = {"distortion": distortion, "nmse": squared, "bits_per_dim_distortion": layout.bits_per_dim(nats)}
        for level in counts.levels:
            sum_over_processes(level)
        levels = [used | error.figures(self.device) for used, error in zip(counts.figures(), errors, strict=True)]
        for level, found in enumerate(levels):
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value / len(levels)  # the mean over levels
                if len(levels) > 1:
                    figures[f"{name}_level{level}"] = value
        return {"criterion": figures["distortion"], **figures}


class Spread:
    """Sums from which the quantization error of a level, and its part of the targets' variance, are computed."""

    def __init__(self, code_dim: int | None) -> None:
        self.sums = torch.zeros(4, code_dim or 0, dtype=torch.float64)  # of ones, targets, squares, squared errors

    def add(self, output: QuantizerOutput) -> None:
        if output.target is None:
            return
        target, code = (part.flatten(0, -2).cpu().double() for part in (output.target, output.code))
        parts = [torch.ones_like(target), target, target.square(), (target - code).square()]
        self.sums += torch.stack([part.sum(0) for part in parts])

    def figures(self, device: torch.device) -> dict[str, float]:
        if not self.sums.numel():
            return {}
        sums = torch.tensor(total(self.sums.flatten().tolist(), device), dtype=torch.float64).view(4, -1)
        targets, squares, errors = sums[1:] / sums[0]
        variance, error = (squares - targets.square()).mean().item(), errors.mean().item()
        varies = variance > ROUNDING * squares.mean().item()
        # Where a level has collapsed there is nothing to compare with: 1, what the targets' mean alone would leave.
        return {"quantization_error": error, "quantization_error_relative": error / variance if varies else 1.0}
