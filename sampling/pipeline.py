"""TwoStagePipeline: both published models together. Generate, reconstruct, complete, and measure log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sampling import checks, memory
from sampling.generate import Streams, generate
from sampling.likelihood import bits_per_dim
from sampling.settings import Settings
from stage1_vqvae.model import load_vqvae
from stage2_prior.priors.build import load_prior
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError
from tessera.launch.devices import exact_float32

Labels = Sequence[int] | torch.Tensor | str | None  # see `TwoStagePipeline.check_labels`


def _advance(bar: Any, images: int, part: float) -> None:
    bar.update(images * part)


class TwoStagePipeline:
    """A VQ-VAE and a prior over its codes.

    A label is the number of a class, or `num_classes` for the null label, which stands for no class in particular.
    Guidance changes nothing for the null label. In every method `labels=None` is the null label for all images.

    Every method works in batches of `batch_size`. Results do not depend on it, up to rounding in fp32. When sampling,
    `batch_size=None` takes as many images at a time as memory holds. Sampling settings are those of
    `sampling.settings.Settings`.
    """

    def __init__(self, vqvae: Any, prior: Any, device: torch.device | str, precision: str = "fp32") -> None:
        if precision not in ("fp32", "bf16"):
            raise UserError(f"precision: expected fp32 or bf16, got {precision!r}")
        self.device = torch.device(device)
        if self.device.type == "mps":
            raise UserError("device mps: it has no float64, which exact sampling needs; use cpu")
        if vqvae.layout != prior.layout:
            raise ValueError(f"the prior is for {prior.layout}, the VQ-VAE has {vqvae.layout}")
        exact_float32()
        self.vqvae, self.prior = vqvae.to(self.device).eval(), prior.to(self.device).eval()
        self.drawing = self.prior.lowered(torch.bfloat16) if precision == "bf16" else self.prior
        self.parents: dict[str, str] = {}  # identities of the published models, where they were loaded
        self._image_bytes = 0  # that drawing one more image takes; 0: not found out yet

    @classmethod
    def load(
        cls, folder: Path | str = "models", device: torch.device | str | None = None, precision: str = "fp32"
    ) -> TwoStagePipeline:
        """Load FOLDER/vqvae and FOLDER/prior.

        Args:
            device: where to; None for the GPU if there is one.
            precision: of the prior while it draws codes, fp32 or bf16. In bf16 drawing is faster. The prior is then not
                exactly the one that was trained, and by rounding its codes depend on `batch_size`. Likelihoods are
                always fp32.

        Raises:
            UserError: a model is missing or damaged, or the prior was made for another VQ-VAE.
        """
        folder = Path(folder)
        vqvae, vqvae_manifest = load_vqvae(folder / "vqvae")
        prior, prior_manifest = load_prior(folder / "prior")
        prior_manifest.require_parent("vqvae", vqvae_manifest.identity, folder / "prior")
        pipeline = cls(vqvae, prior, device or ("cuda" if torch.cuda.is_available() else "cpu"), precision)
        pipeline.parents = {"vqvae": vqvae_manifest.identity, "prior": prior_manifest.identity}
        return pipeline

    @property
    def layout(self) -> CodeLayout:
        return self.vqvae.layout

    @property
    def num_classes(self) -> int:
        return self.prior.num_classes

    def check_labels(self, labels: Labels, count: int, start: int = 0) -> torch.Tensor | None:
        """Labels as a tensor.

        Args:
            labels: a class for each image; "each" for the classes in turn, image i having class i mod num_classes (and
                none where the prior was trained without labels); None for the null label.
            count: number of images; start: place of the first one in the run.

        Returns:
            int64 (count,), or None for the null label.

        Raises:
            UserError: labels for a prior without classes, a wrong number of them, or a class that does not exist.
        """
        classes = self.num_classes
        if labels is None:
            return None
        if isinstance(labels, str):
            if labels != "each":
                raise UserError(f'labels: expected whole numbers, "each" or None, got {labels!r}')
            return torch.arange(start, start + count) % classes if classes else None
        if not classes:
            raise UserError("labels: this prior was trained without labels; leave them out")
        given, wanted = labels, f"labels: expected {count} whole numbers, one an image"
        try:
            found = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
            if found.dtype.kind not in "iu" or found.shape != (count,):
                raise UserError(f"{wanted}, got {found.shape} of {found.dtype}")
            labels = torch.from_numpy(found.astype(np.int64))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{wanted}, got {type(given).__name__}: {' '.join(str(error).split())}") from error
        wrong = labels[(labels < 0) | (labels > classes)]
        if len(wrong):
            raise UserError(
                f"labels: class {int(wrong[0])} does not exist; choose from 0 to {classes - 1}, or {classes} for no "
                "class in particular"
            )
        return labels.long()

    def batches(
        self,
        count: int,
        labels: Labels = None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        start: int = 0,
        **settings: Any,
    ) -> Iterator[torch.Tensor]:
        """What `generate` gives, a batch at a time: for more images than memory holds."""
        chosen = Settings.checked(self.layout, settings)
        checks.numbers(("n", count, 1), ("seed", seed, 0), ("start", start, 0), *checks.sizes(batch_size))
        labels = self.check_labels(labels, count, start)
        checks.null_label(labels, self.prior, chosen)

        def draw() -> Iterator[torch.Tensor]:
            with self._bar(count, "generate") as bar:
                for rows in self._parts(count, batch_size):
                    streams = Streams(seed, tuple(start + i for i in rows.tolist()), self.device)
                    classes = None if labels is None else labels[rows].to(self.device)
                    tick = partial(_advance, bar, len(rows))
                    yield self.decode_tokens(generate(self.drawing, classes, streams, chosen, tick=tick))

        return draw()

    def _parts(self, count: int, batch_size: int | None) -> tuple[torch.Tensor, ...]:
        """The places 0 to `count` - 1, cut into batches; `batch_size` None takes as many images as memory holds."""
        if batch_size is None and count > 1:
            self._image_bytes = self._image_bytes or memory.image_bytes(self.vqvae, self.drawing, self.device)
            batch_size = memory.batch_size(self._image_bytes, self.drawing, self.device)
        return torch.arange(count).split(1 if batch_size is None else int(batch_size))

    @staticmethod
    def _bar(count: int, what: str) -> Any:
        """A progress bar over images that moves with every code. It is silent where standard error is no terminal."""
        form = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
        return tqdm(total=count, desc=what, unit="image", disable=None, bar_format=form)

    def generate(self, n: int, labels: Labels = None, **settings: Any) -> torch.Tensor:
        """Sample images.

        Args:
            n: how many.
            labels: (n,) classes; "each" for the classes in turn; None for the null label (see `check_labels`).
            settings: those of `Settings`; `seed`; `batch_size`; and `start`, the place of the first image in the run.
                Images 3 to 5 of a run are n=3, start=3.

        Returns:
            float32 (n, C, H, W) in [-1, 1], on the CPU.

        Raises:
            UserError: a setting or label that does not exist.
        """
        return torch.cat(list(self.batches(n, labels, **settings)))

    @torch.no_grad()
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N) to float32 images (B, C, H, W) in [-1, 1] on the CPU."""
        return self.vqvae.decode(self.layout.unflatten(tokens.to(self.device))).float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Images through the codes and back: float32 (B, C, H, W) in [-1, 1], on the CPU.

        Raises:
            UserError: images of another shape, not float, or out of range.
        """
        checks.shape(images, self.layout.image_shape, torch.float32)
        checks.in_range(images)
        checks.numbers(("batch_size", batch_size, 1))
        parts = [self.vqvae.decode(self.vqvae.encode(part.to(self.device))) for part in images.split(int(batch_size))]
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

        A code is given where every pixel that it stands for is known, and sampled elsewhere. An autoregressive prior
        works in the order of its sequence: a sampled code is conditioned on the given codes before it, and not on those
        after it. A masked prior conditions on all given codes. The encoder sees grey in place of unknown pixels,
        whatever value they hold (NaN too).

        Args:
            images: float32 (B, C, H, W), in [-1, 1] where known.
            mask: bool (B, 1, H, W) or (H, W), True where a pixel is known.
            labels: (B,) classes; "each" for the classes in turn; None for the null label (see `check_labels`).

        Returns:
            float32 (B, C, H, W) in [-1, 1], on the CPU, the known pixels as they came.

        Raises:
            UserError: a shape, setting or label that does not fit.
        """
        checks.shape(images, self.layout.image_shape, torch.float32)
        chosen = Settings.checked(self.layout, settings)
        checks.numbers(("seed", seed, 0), *checks.sizes(batch_size))
        labels = self.check_labels(labels, len(images))
        labels = None if labels is None else labels.to(self.device)
        checks.null_label(labels, self.prior, chosen)
        shapes = [tuple(images.shape[-2:]), (len(images), 1, *images.shape[-2:])]
        if mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
            raise UserError(f"mask: expected bool {shapes[0]} or {shapes[1]}, got {mask.dtype} {tuple(mask.shape)}")
        mask, parts = mask.cpu().expand(shapes[1]), []
        images = images.cpu().masked_fill(~mask, 0.0)
        checks.in_range(images)
        with self._bar(len(images), "complete") as bar:
            for rows in self._parts(len(images), batch_size):
                known, part = mask[rows].to(self.device), images[rows].to(self.device)
                tokens = self.layout.flatten(self.vqvae.encode(part))
                given = torch.where(self._known_tokens(known), tokens, -1)
                streams = Streams(seed, tuple(rows.tolist()), self.device)
                classes = None if labels is None else labels[rows]
                tokens = generate(self.drawing, classes, streams, chosen, given, partial(_advance, bar, len(rows)))
                parts.append(torch.where(mask[rows], images[rows], self.decode_tokens(tokens)))
        return torch.cat(parts)

    def _known_tokens(self, known: torch.Tensor) -> torch.Tensor:
        """Which tokens stand for known pixels only, bool (B, N), from which pixels are known, bool (B, 1, H, W)."""
        unknown = (~known).float()
        grids = []
        for level in self.layout.levels:
            cells = torch.nn.functional.adaptive_max_pool2d(unknown, (level.height, level.width))[:, 0] == 0
            grids.append(cells[..., None].expand(-1, -1, -1, level.depth))
        return self.layout.flatten(grids)

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

        Args:
            images: uint8 (B, C, H, W).
            labels: (B,) classes; "each" for the classes in turn; None for the null label (see `check_labels`). The bits
                of the label itself are not in the rate.
            class_probabilities: (num_classes,) p(y), instead of labels: the rate is of p(z) = Σ p(y) p(z | y).

        Returns:
            `distortion`, -log p(x | z); `rate`, -log p(z) or -log p(z | y); and `total`, their sum: float64 (B,).
            `rate_by_level`, float64 (B, levels): the rate of each level given the coarser ones. All are on the CPU. For
            a prior that is not `exact`, rates are estimates of upper bounds, and `rate_standard_error` is the standard
            error of `rate`.

        Raises:
            UserError: images of another shape, or not uint8; a label that does not exist; class probabilities that are
                no distribution, or that are given beside labels.
        """
        checks.shape(images, self.layout.image_shape, torch.uint8)
        checks.numbers(("batch_size", batch_size, 1))
        weights = checks.probabilities(class_probabilities, labels, self.prior)
        weights = None if weights is None else weights.to(self.device)
        labels = self.check_labels(labels, len(images))
        labels = None if labels is None else labels.to(self.device)
        if weights is None:
            checks.null_label(labels, self.prior)
        return bits_per_dim(self.vqvae, self.prior, images, labels, weights, batch_size)
