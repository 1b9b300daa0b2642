"""Metrics against their definitions in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.metrics import PSNR_CEILING, label_nats, psnr, squared_error, ssim, ssim_sigma
from tessera.errors import UserError


def pair(shape: tuple[int, ...], noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=random) * 2 - 1
    return (images + noise * torch.randn(shape, generator=random)).clamp(-1, 1), images


def ssim_by_hand(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Wang et al. 2004 on one channel, window by window, the border mirrored."""
    reach = int(3.5 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    x, y = np.pad(x, reach, mode="reflect"), np.pad(y, reach, mode="reflect")
    c1, c2, values = (0.01 * 2) ** 2, (0.03 * 2) ** 2, []
    for i in range(x.shape[0] - 2 * reach):
        for j in range(x.shape[1] - 2 * reach):
            a, b = (z[i : i + 2 * reach + 1, j : j + 2 * reach + 1] for z in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            cov = (window * a * b).sum() - ma * mb
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_psnr_is_its_formula_for_each_image():
    images, reference = pair((3, 3, 8, 12))
    error = (images.double() - reference.double()).square().mean((1, 2, 3)).numpy()
    assert psnr(images, reference).tolist() == pytest.approx(list(10 * np.log10(4 / error)))


def test_a_perfect_image_does_not_make_the_mean_infinite():
    _, reference = pair((2, 1, 8, 8))
    assert psnr(reference, reference).tolist() == pytest.approx([PSNR_CEILING] * 2)
    assert 58 < PSNR_CEILING < 60


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 1, 9, 14), (2, 3, 16, 12), (1, 1, 4, 32)])
def test_ssim_is_its_formula_at_any_size(shape):
    images, reference = pair(shape)
    sigma = ssim_sigma(*shape[-2:])
    expected = [
        np.mean([ssim_by_hand(a, b, sigma) for a, b in zip(x, y, strict=True)])
        for x, y in zip(images.double().numpy(), reference.double().numpy(), strict=True)
    ]
    assert ssim(images, reference).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_uses_the_usual_window_where_it_fits_and_refuses_where_none_does():
    assert ssim_sigma(11, 300) == ssim_sigma(256, 256) == 1.5
    assert ssim_sigma(8, 8) == pytest.approx(3 / 3.5)
    with pytest.raises(UserError, match="smaller than 3 x 3"):
        ssim_sigma(2, 64)


def test_squared_error_is_a_sum_in_float64():
    images, reference = pair((2, 1, 8, 8))
    expected = ((images.double() - reference.double()) ** 2).numpy().reshape(2, -1).sum(1)
    assert squared_error(images, reference).tolist() == pytest.approx(list(expected))


def test_label_nats_are_smoothed_training_frequencies():
    found = label_nats(np.array([0, 1, 2]), np.array([0, 0, 0, 1]), 3)
    assert np.exp(-found).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
