"""TwoStagePipeline: both published models together. Generate, reconstruct, complete, and measure log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from PIL import Image

from sampling import checks, memory, pictures
from sampling.describe import description
from sampling.generate import Streams, generate, known_tokens
from sampling.labels import Classes, Labels
from sampling.likelihood import bits_per_dim
from sampling.published import Published
from sampling.settings import Settings
from tessera.codes.layout import CodeLayout
from tessera.console import Bar
from tessera.errors import UserError
from tessera.images.pixels import to_uint8
from tessera.launch.devices import exact_float32


def _advance(bar: Any, images: int, part: float) -> None:
    bar.update(images * part)


class TwoStagePipeline(Published):
    """A VQ-VAE and a prior over its codes.

    A label is the name or the number of a class, or `num_classes` for the null label, which stands for no class in
    particular and which guidance does not change. In every method `labels=None` is the null label for all images.

    Every method works in batches of `batch_size`. Results do not depend on it, up to rounding in fp32. When sampling,
    `batch_size=None` takes as many images at a time as memory holds. Sampling settings are those of
    `sampling.settings.Settings`.
    """

    def __init__(
        self, vqvae: Any, prior: Any, device: torch.device | str, precision: str = "fp32", decoder: Any = None
    ) -> None:
        """decoder: the model whose `decode` turns codes into images; None: the VQ-VAE itself. Others: see `load`."""
        if precision not in ("fp32", "bf16"):
            raise UserError(f"precision: expected fp32 or bf16, got {precision!r}")
        super().__init__()
        self.device = checks.device(device)
        if vqvae.layout != prior.layout:
            raise ValueError(f"the prior is for {prior.layout}, the VQ-VAE has {vqvae.layout}")
        exact_float32()
        self.vqvae, self.prior = vqvae.to(self.device).eval(), prior.to(self.device).eval()
        self.decoder = self.vqvae if decoder is None else decoder.to(self.device).eval()
        self.drawing = self.prior.lowered(torch.bfloat16) if precision == "bf16" else self.prior
        self.classes = Classes.of(prior)
        self._image_bytes = 0  # that drawing one more image takes; 0: not found out yet

    __repr__ = description

    @property
    def layout(self) -> CodeLayout:
        return self.vqvae.layout

    @property
    def num_classes(self) -> int:
        return self.prior.num_classes

    def check_labels(self, labels: Labels, count: int, start: int = 0) -> torch.Tensor | None:
        """The labels of images `start` to `start + count - 1` of a run: `Classes.numbers` with `repeat`.

        Raises:
            UserError: see `sampling.labels.Classes.numbers`; or no training image shows a class.
        """
        numbers = self.classes.numbers(labels, count, start, repeat=True)
        self.classes.require_trained(numbers)
        return numbers

    def batches(
        self,
        count: int,
        labels: Labels = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        start: int = 0,
        bar: Bar | None = None,
        **settings: Any,
    ) -> Iterator[torch.Tensor]:
        """Yields the images of `generate` batch by batch. `bar`: a progress bar over several calls; None: a new one."""
        chosen, count = Settings.checked(self.layout, settings), checks.count(count)
        checks.numbers(("seed", seed, 0), ("start", start, 0), *checks.sizes(batch_size))
        seed, start = int(seed), int(start)
        labels = self.check_labels(labels, count, start)
        checks.null_label(labels, self.prior, chosen)

        def draw() -> Iterator[torch.Tensor]:
            with Bar(count, "generate", "image") if bar is None else nullcontext(bar) as shown:
                for rows in self._parts(count, batch_size):
                    streams = Streams(seed, tuple(range(start + rows.start, start + rows.stop)), self.device)
                    classes = None if labels is None else labels[rows].to(self.device)
                    tick = partial(_advance, shown, len(streams.indices))
                    yield self.decode_tokens(generate(self.drawing, classes, streams, chosen, tick=tick))

        return draw()

    def _parts(self, count: int, batch_size: int | None) -> Iterator[slice]:
        """The places 0 to `count` - 1, cut into batches; `batch_size` None takes as many images as memory holds."""
        if batch_size is None and count > 1:
            self._image_bytes = self._image_bytes or memory.image_bytes(self.vqvae, self.drawing, self.device)
            batch_size = memory.batch_size(self._image_bytes, self.drawing, self.device)
        size = 1 if batch_size is None else int(batch_size)
        return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))

    def generate(self, n: int, labels: Labels = None, **settings: Any) -> torch.Tensor:
        """Sample `n` images.

        Args:
            labels: (n,) classes by name or number; fewer, which are then taken in turn; one, for all images; "each" for
                all classes in turn; None for the null label (see `sampling.labels.Classes.numbers`).
            settings: those of `Settings`; `seed`; `batch_size`; and `start`, the first image's number in the run.
                Images 3 to 5 of a run are n=3, start=3.

        Returns:
            float32 (n, C, H, W) in [-1, 1], on the CPU.

        Raises:
            UserError: a setting or label that does not exist.
        """
        checks.fit_in_memory(checks.count(n), self.layout.image_shape)
        return torch.cat(list(self.batches(n, labels, **settings)))

    def to_pil(self, images: torch.Tensor) -> list[Image.Image]:
        """Images as Pillow has them, grey or RGB, for saving and showing: `pipeline.to_pil(images)[0].save("one.png")`.

        Args:
            images: float (B, C, H, W) in [-1, 1], as the other methods return them, or uint8.

        Raises:
            UserError: images of another shape or dtype, or out of range.
        """
        if isinstance(images, torch.Tensor) and images.dtype != torch.uint8:
            checks.shape(images, self.layout.image_shape, torch.float32)
            checks.in_range(images)
            images = to_uint8(images)
        checks.shape(images, self.layout.image_shape, torch.uint8)
        return pictures.to_pil(images)

    @torch.no_grad()
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N) to float32 images (B, C, H, W) in [-1, 1] on the CPU."""
        return self.decoder.decode(self.layout.unflatten(tokens.to(self.device))).float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Images through codes, not refined ones, and back: float32 (B, C, H, W) in [-1, 1], on the CPU.

        Raises:
            UserError: images of another shape, not float, or out of range.
        """
        checks.shape(images, self.layout.image_shape, torch.float32)
        checks.in_range(images)
        checks.numbers(("batch_size", batch_size, 1))
        parts = images.split(min(int(batch_size), len(images)))
        parts = [self.decoder.decode(self.vqvae.encode(part.to(self.device))) for part in parts]
        return torch.cat(parts).float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def complete(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        labels: Labels = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """Keep an image's known pixels and sample the rest.

        A code is given where every pixel that it stands for is known, and sampled elsewhere. On which given codes a
        sampled one depends is up to the prior (docs/guide/sampling.md#completing-an-image): masked and any_order see
        all of them, others those before it only. The encoder sees grey in place of unknown pixels, whatever value they
        hold (NaN too).

        Args:
            images: float32 (B, C, H, W), in [-1, 1] where known.
            mask: bool (B, 1, H, W) or (H, W), True where a pixel is known.
            labels: (B,) classes by name or number; one, for all; "each"; None for the null label (see
                `sampling.labels.Classes.numbers`).

        Returns:
            float32 (B, C, H, W) in [-1, 1], on the CPU, the known pixels as they came.

        Raises:
            UserError: a shape, setting or label that does not fit.
        """
        checks.shape(images, self.layout.image_shape, torch.float32)
        chosen = Settings.checked(self.layout, settings)
        checks.numbers(("seed", seed, 0), *checks.sizes(batch_size))
        labels = self.classes.numbers(labels, len(images))
        self.classes.require_trained(labels)
        labels = None if labels is None else labels.to(self.device)
        checks.null_label(labels, self.prior, chosen)
        shapes = [tuple(images.shape[-2:]), (len(images), 1, *images.shape[-2:])]
        if mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
            raise UserError(f"mask: expected bool {shapes[0]} or {shapes[1]}, got {mask.dtype} {tuple(mask.shape)}")
        mask, parts = mask.cpu().expand(shapes[1]), []
        images = images.cpu().masked_fill(~mask, 0.0)
        checks.in_range(images)
        with Bar(len(images), "complete", "image") as bar:
            for rows in self._parts(len(images), batch_size):
                known, part = mask[rows].to(self.device), images[rows].to(self.device)
                tokens = self.layout.flatten(self.vqvae.encode(part))
                given = torch.where(known_tokens(self.layout, known), tokens, -1)
                streams = Streams(int(seed), tuple(range(rows.start, rows.stop)), self.device)
                classes = None if labels is None else labels[rows]
                tokens = generate(self.drawing, classes, streams, chosen, given, partial(_advance, bar, len(part)))
                parts.append(torch.where(mask[rows], images[rows], self.decode_tokens(tokens)))
        return torch.cat(parts)

    @torch.no_grad()
    def log_likelihood(
        self,
        images: torch.Tensor,
        labels: Labels = None,
        batch_size: int = 64,
        *,
        class_probabilities: Sequence[float] | torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Upper bounds of -log p(x), or of -log p(x | y), in bits per dimension: distortion plus rate.

        They are for the encoder's codes. `evaluate` measures data/codes, which `extract_codes.refine` may improve.

        Args:
            images: uint8 (B, C, H, W).
            labels: see `complete`. The bits of the label itself are not in the rate.
            class_probabilities: (num_classes,) p(y), instead of labels: the rate is of p(z) = Σ p(y) p(z | y).

        Returns:
            `distortion`, -log p(x | z); `rate`, -log p(z) or -log p(z | y); and `total`, their sum: float64 (B,).
            `rate_by_level`, float64 (B, levels): the rate of each level given the coarser ones. All are on the CPU. For
            a prior that is not `exact`, rates are estimates of upper bounds, and `rate_standard_error` is the standard
            error of `rate`.

        Raises:
            UserError: images of another shape, or not uint8; a label that does not exist; class probabilities that are
                no distribution, or that are given beside labels; the VQ-VAE has no likelihood.
        """
        checks.likelihood(self.vqvae)
        checks.shape(images, self.layout.image_shape, torch.uint8)
        checks.numbers(("batch_size", batch_size, 1))
        weights = checks.probabilities(class_probabilities, labels, self.prior)
        weights = None if weights is None else weights.to(self.device)
        labels = self.classes.numbers(labels, len(images))
        labels = None if labels is None else labels.to(self.device)
        if weights is None:
            checks.null_label(labels, self.prior)
        return bits_per_dim(self.vqvae, self.prior, images, labels, weights, min(int(batch_size), len(images)))
