"""The training task of stage 1: batches, losses and validation of a VQ-VAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch

from stage1_vqvae.codebooks import initialise_codebooks, re_estimate_codebooks
from stage1_vqvae.model import VQVAE
from stage1_vqvae.parameters import AugmentationParams, Stage1TrainingParams
from stage1_vqvae.quantizers.base import Quantizer
from stage1_vqvae.quantizers.output import QuantizerOutput
from tessera.codes.figures import CodeCounts
from tessera.distributed import share, sum_over_processes, total
from tessera.images.augment import augment
from tessera.images.pixels import to_float
from tessera.images.prepared import ImageSplit
from tessera.randomness import SampleOrder, generator, seed_of
from tessera.training.task import Batch, Task

# Images that are encoded at a time when something is fitted. It is fixed, because a sum over batches of another size
# would be rounded differently, and `runtime.batch_size` must not change a codebook.
FIT_BATCH = 64
WHOLE_BATCH = "the loss has an entropy of the whole batch, which pieces do not have; set the entropy's cost to 0"
NATS = "nats"  # of an image given its codes
ROUNDING = 1e-12  # relative error of a mean of float64 squares; a smaller variance is taken for 0


class VQVAETask(Task):
    """Trains a VQ-VAE; its best weights have the smallest distortion on the validation split.

    Attributes:
        vqvae: the VQ-VAE, which may be a part of `model`.
        inputs_used: the identity of what the training reads besides images, by name.
    """

    section = "stage1_vqvae.training"
    criterion = "distortion"
    shown = "perplexity"
    inputs_used: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        model: VQVAE,
        train: ImageSplit,
        validation: ImageSplit,
        params: Stage1TrainingParams,
        augmentation: AugmentationParams,
    ) -> None:
        self.model = self.vqvae = model
        self.train, self.validation = train, validation
        self.params, self.augmentation = params, augmentation
        self.order = SampleOrder(len(train), params.batch_size, params.seed)
        self.re_estimated = model.re_estimated_parameters
        if any(q.whole_batch for q in model.modules() if isinstance(q, Quantizer)):
            self.whole_batch = WHOLE_BATCH

    @property
    def device(self) -> torch.device:
        return next(self.vqvae.parameters()).device

    def _chunks(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`count` random training images, in batches (uint8 pixels, the same as floats in [-1, 1] on the device).

        They are the same in every call and on every process.
        """
        order = SampleOrder(len(self.train), min(count, len(self.train)), self.params.seed).batch(0)
        for start in range(0, len(order), FIT_BATCH):
            pixels = self.train.pixels(order[start : start + FIT_BATCH])
            yield pixels, to_float(pixels.to(self.device))

    def _codebook_images(self) -> Iterator[torch.Tensor]:
        """Batches of the float images from which codebooks are computed: the same at each call and on every process."""
        return (images for _, images in self._chunks(self.params.codebook_images))

    def initialise(self) -> None:
        """Move the initial codes to training images as the untrained encoder encodes them.

        Quantizers that begin at data receive the vectors of `training.codebook_images` random images. Nothing happens
        if `training.initialise_from` is set, because the codes are then those of a published model.
        """
        if self.params.initialise_from:
            return
        initialise_codebooks(self.vqvae, self._codebook_images, self.params.seed)

    def re_estimate(self) -> None:
        """Re-estimate the codebooks for the averaged weights, if the quantizers do so (`Quantizer.re_estimate`)."""
        re_estimate_codebooks(self.vqvae, self._codebook_images)

    def batch(self, step: int, rows: slice) -> Batch:
        """The given rows of a step's global batch, on the CPU, augmented.

        Returns:
            `images`, uint8 (m, C, H, W), one for each of the m rows. If a quantizer draws codes at random, also
            `seeds`, int64 (m,): the random seed of each image.
        """
        indices, flip, shift = self.order.batch(step), self.augmentation.horizontal_flip, self.augmentation.shift
        random = generator("augment", self.params.seed, step)
        batch = {"images": augment(self.train.pixels(indices[rows]), flip, shift, random, len(indices), rows)}
        if self.vqvae.stochastic:
            seeds = [seed_of("codes", self.params.seed, step, row) for row in range(len(indices))[rows]]
            batch["seeds"] = torch.tensor(seeds)
        return batch

    def update(self, step: int) -> dict[str, torch.Tensor]:
        """Let the quantizers move their codebooks."""
        return self.vqvae.update(step, self.params.seed)

    def discard(self) -> None:
        """Drop what the quantizers gathered."""
        self.vqvae.discard()

    @torch.no_grad()
    def fit_likelihood(self) -> None:
        """Fit the likelihood's parameters that have no gradient, on training images, for the present weights."""
        count = self.vqvae.likelihood.fit_images
        if count:
            pairs = (
                (self.vqvae.decode_parameters(self.vqvae.encode(images)), pixels)
                for pixels, images in self._chunks(count)
            )
            self.vqvae.likelihood.fit(pairs, min(count, len(self.train)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures over the whole validation split.

        The likelihood is fitted first, on training images, if the decoder is trained by it alone.

        Returns:
            distortion: the training loss without the quantizer's part.
            nmse: mean squared error over the variance of the training pixels.
            bits_per_dim_distortion: -log2 p(x | z) per dimension, where the likelihood was fitted.
            codebook_usage, perplexity: of the codes of the whole split.
            quantization_error: mean squared difference of a vector and its code.
            quantization_error_relative: this difference over the variance of the vectors.

            Figures of codes are means over levels. With several levels there is `NAME_level0` for the coarsest, and
            so on.
        """
        model, layout, count = self.vqvae, self.vqvae.layout, len(self.validation)
        if model.has_likelihood:
            self.fit_likelihood()
        sums = dict.fromkeys(self.figure_names, 0.0)
        counts = CodeCounts(layout, self.device)
        errors = [Spread(model.quantizer_of(level).code_dim) for level in range(len(layout.levels))]
        for rows in share(count, self.together):
            pixels = self.validation.pixels(rows).to(self.device)
            images = to_float(pixels)
            outputs = model.quantize(images)
            codes = [output.indices for output in outputs]
            for name, value in self.sums(model.decode_parameters(codes), images, pixels).items():
                sums[name] += value
            counts.add(codes)
            for error, output in zip(errors, outputs, strict=True):
                error.add(output)
        means = [value / count for value in total(list(sums.values()), self.device)]
        figures = dict(zip(sums, means, strict=True))
        if NATS in figures:
            figures["bits_per_dim_distortion"] = layout.bits_per_dim(figures.pop(NATS))
        for level in counts.levels:
            sum_over_processes(level)
        levels = [used | error.figures(self.device) for used, error in zip(counts.figures(), errors, strict=True)]
        for level, found in enumerate(levels):
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value / len(levels)
                if len(levels) > 1:
                    figures[f"{name}_level_{level}"] = value
        return figures

    @property
    def figure_names(self) -> list[str]:
        """The names of `sums`."""
        return ["distortion", "nmse", *([NATS] if self.vqvae.has_likelihood else [])]

    def sums(self, parameters: torch.Tensor, images: torch.Tensor, pixels: torch.Tensor) -> dict[str, float]:
        """The metrics of a batch of validation images, each summed over the B images.

        Args:
            parameters: float32 (B, outputs, H, W), what the decoder says of each pixel: the parameters of p(x | z).
            images: float (B, C, H, W) in [-1, 1].
            pixels: uint8 (B, C, H, W), the same images.

        Returns:
            `distortion`: the likelihood's loss; `nmse`: the mean squared error over the variance of the training
            images' pixels; where the model has a likelihood, its -log p(x | z) in nats too.
        """
        model, variance = self.vqvae, self.vqvae.config["data_variance"]
        found = {"distortion": model.likelihood.loss(parameters, images, variance).item() * len(images)}
        squares = (model.likelihood.mean(parameters) - images).square()
        found["nmse"] = squares.mean().item() / variance * len(images)
        if model.has_likelihood:
            found[NATS] = model.likelihood.nll(parameters, pixels).sum().item()
        return found


class Spread:
    """Sums over vectors, from which the quantization error of a level is computed."""

    def __init__(self, code_dim: int | None) -> None:
        """`code_dim`: width of a code, or None if codes stand for no vector and there is no error."""
        # For each channel: the number of vectors, and the sums of vectors, of their squares, and of squared errors.
        self.sums = torch.zeros(4, code_dim or 0, dtype=torch.float64)

    def add(self, output: QuantizerOutput) -> None:
        """Count the vectors of a batch."""
        if output.target is None:
            return
        target, code = (part.flatten(0, -2).cpu().double() for part in (output.target, output.code))
        parts = [torch.ones_like(target), target, target.square(), (target - code).square()]
        self.sums += torch.stack([part.sum(0) for part in parts])

    def figures(self, device: torch.device) -> dict[str, float]:
        """The error, and the error over the vectors' variance, summed over processes; {} if there is no error.

        Args:
            device: where tensors are that processes exchange.
        """
        if not self.sums.numel():
            return {}
        sums = torch.tensor(total(self.sums.flatten().tolist(), device), dtype=torch.float64).view(4, -1)
        targets, squares, errors = sums[1:] / sums[0]
        variance, error = (squares - targets.square()).mean().item(), errors.mean().item()
        varies = variance > ROUNDING * squares.mean().item()
        # If all vectors are equal, the relative error is that of a single code at their mean: 1.
        return {"quantization_error": error, "quantization_error_relative": error / variance if varies else 1.0}
