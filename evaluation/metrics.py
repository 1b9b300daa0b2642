"""Figures of reconstructions (PSNR, SSIM, squared error), the nats of labels, and how many tokens number images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tessera.codes.layout import CodeLayout
from tessera.errors import UserError

DATA_RANGE = 2.0  # of images in [-1, 1]
SSIM_SIDE = 3  # pixels; no window fits into smaller images

# The PSNR of an image that was only rounded to 8 bits, whose error has the variance step²/12. The PSNR of a perfect
# image is infinite, and a single infinite value would make the mean over images meaningless.
PSNR_CEILING = 10 * math.log10(DATA_RANGE**2 / ((DATA_RANGE / 255) ** 2 / 12))


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image, float64 (B,) in decibels, at most `PSNR_CEILING`.

    Args:
        images, reference: float (B, C, H, W) in [-1, 1].
    """
    ratio = peak_signal_noise_ratio(
        images.double(), reference.double(), data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3)
    )
    return ratio.clamp(max=PSNR_CEILING)


def ssim_unavailable(height: int, width: int) -> str | None:
    """Why SSIM cannot be measured on images of this size in pixels, for the user; None if it can."""
    if min(height, width) >= SSIM_SIDE:
        return None
    return f"images of {height} x {width} pixels are smaller than {SSIM_SIDE} x {SSIM_SIDE}, its smallest window"


def ssim_sigma(height: int, width: int) -> float:
    """The standard deviation of SSIM's Gaussian window, in pixels.

    It is 1.5, which gives the usual 11 x 11 window. Smaller images get a smaller one, so that the window fits:
    torchmetrics' window reaches `int(3.5 σ + 0.5)` pixels to each side. An 8 x 8 image has room for 3, so σ is 0.86.
    SSIM therefore compares models of one image size, not of different sizes.

    Raises:
        UserError: a side has fewer than 3 pixels, and no window fits.
    """
    if reason := ssim_unavailable(height, width):
        raise UserError(f"SSIM: {reason}; raise data.height and data.width")
    reach = (min(height, width) - 1) // 2
    return 1.5 if reach >= 5 else reach / 3.5


def ssim(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, float64 (B,), for float images (B, C, H, W) in [-1, 1].

    Source: Wang et al. 2004, with the window of `ssim_sigma`.
    """
    sigma = ssim_sigma(*images.shape[-2:])
    value = structural_similarity_index_measure(
        images.double(), reference.double(), sigma=sigma, data_range=DATA_RANGE, reduction="none"
    )
    return value.reshape(-1)


def squared_error(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Sum of squared errors of each image, float64 (B,), for images (B, C, H, W)."""
    return (images.double() - reference.double()).square().flatten(1).sum(1)


def label_nats(labels: np.ndarray, training_labels: np.ndarray, num_classes: int) -> np.ndarray:
    """-log p(y) of each label, float64 (n,), in nats, where p(y) = (n_y + 1) / (n + num_classes).

    n_y counts class y among the n training labels. One is added to each count, so that a class without training images
    has a probability above 0.
    """
    counts = np.bincount(training_labels, minlength=num_classes) + 1.0
    return -np.log(counts / counts.sum())[labels]


def tokens(layout: CodeLayout, training_images: int) -> dict[str, int]:
    """The tokens of an image, and how many of the first ones could number all training images: ⌈log N / log K⌉.

    With more tokens than that a prior can tell every training image from all others, and so learn them by heart. The
    second figure is left out where all tokens together have fewer combinations than there are training images.
    """
    found, combinations, count = {"tokens": layout.num_tokens}, 1, 0
    for level in layout.levels:
        for _ in range(level.height * level.width * level.depth):
            if combinations >= training_images:
                return found | {"tokens_that_number_training": count}
            combinations, count = combinations * level.codebook_size, count + 1
    return found | ({"tokens_that_number_training": count} if combinations >= training_images else {})
