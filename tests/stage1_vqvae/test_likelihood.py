"""p(x | z) is exact: against scipy's distribution functions, closed forms, and its own sum over the 256 values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stage1_vqvae.likelihood import DiscretizedLogistic, Gaussian, build_likelihood

VALUES = np.arange(256)
IMAGES = VALUES / 127.5 - 1
LOWER = np.where(VALUES == 0, -np.inf, IMAGES - 1 / 255)
UPPER = np.where(VALUES == 255, np.inf, IMAGES + 1 / 255)
PIXELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
LOCATIONS = (-300.0, -3.0, -1.0, -0.4, 0.0, 1 / 255, 0.999, 1.7, 40.0)


def gaussian(scale: float) -> Gaussian:
    likelihood = Gaussian(fit_images=1)
    likelihood.log_scale.fill_(math.log(scale))
    return likelihood


def every_value(likelihood: torch.nn.Module, *parameters: float) -> np.ndarray:
    """log p of all 256 values under the same parameters."""
    tensor = torch.tensor(parameters, dtype=torch.float64).view(1, -1, 1, 1).expand(-1, -1, 1, 256)
    return likelihood.log_prob(tensor, PIXELS).numpy().ravel()


def oracle(family: stats.rv_continuous, location: float, scale: float) -> np.ndarray:
    """log of the interval's probability, from whichever tail keeps more digits."""
    left = family.cdf(UPPER, location, scale) - family.cdf(LOWER, location, scale)
    right = family.sf(LOWER, location, scale) - family.sf(UPPER, location, scale)
    with np.errstate(divide="ignore"):
        return np.log(np.where(location < LOWER, right, left))


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1 / 255, 0.1, 1.0, 1e3, 1e9])
def test_gaussian_probabilities_of_the_256_values_sum_to_one(location: float, scale: float) -> None:
    log_prob = every_value(gaussian(scale), location)
    assert log_prob.dtype == np.float64 and not np.isnan(log_prob).any()
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -3.0, 0.0, 5.0, 20.0])
def test_logistic_probabilities_of_the_256_values_sum_to_one(location: float, log_scale: float) -> None:
    log_prob = every_value(DiscretizedLogistic(min_log_scale=-9.0), location, log_scale)
    assert log_prob.dtype == np.float64 and not np.isnan(log_prob).any()
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-9)


def test_the_probability_of_training_sums_to_one_in_float32_too() -> None:
    likelihood = DiscretizedLogistic(min_log_scale=-7.0)
    parameters = torch.tensor([0.3, -3.0]).view(1, 2, 1, 1)
    images = PIXELS.float() / 127.5 - 1
    nats = [likelihood.loss(parameters, images[..., i : i + 1], 1.0).item() for i in range(256)]
    assert np.exp(-np.array(nats)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("location", [-1.4, -0.2, 0.0, 0.7, 1.2])
@pytest.mark.parametrize("scale", [0.01, 0.08, 0.5, 3.0])
def test_log_probabilities_are_the_differences_of_scipys_distribution_functions(location: float, scale: float) -> None:
    scale = float(np.exp(np.float64(np.float32(math.log(scale)))))  # as the model keeps it
    for log_prob, family in (
        (every_value(gaussian(scale), location), stats.norm),
        (every_value(DiscretizedLogistic(min_log_scale=-9.0), location, math.log(scale)), stats.logistic),
    ):
        expected = oracle(family, location, scale)
        seen = expected > -600  # below, scipy's own difference underflows
        np.testing.assert_allclose(log_prob[seen], expected[seen], rtol=1e-9, atol=1e-9)


def test_far_tails_keep_their_log_probability_where_a_difference_would_be_zero() -> None:
    log_prob = every_value(gaussian(0.001), -1.0)
    lower, upper = (IMAGES[200] - 1 / 255 + 1) / 0.001, (IMAGES[200] + 1 / 255 + 1) / 0.001
    assert log_prob[200] == pytest.approx(stats.norm.logsf(lower), rel=1e-6)
    assert stats.norm.sf(lower) - stats.norm.sf(upper) == 0
    assert np.isfinite(log_prob).all()


@pytest.mark.parametrize("location", [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 8.0, 50.0])
def test_logistic_loss_and_gradient_are_finite_everywhere(location: float, log_scale: float) -> None:
    parameters = torch.tensor([location, log_scale]).view(1, 2, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    images = torch.tensor([0, 1, 128, 255]).view(1, 1, 1, 4) / 127.5 - 1
    loss = DiscretizedLogistic(min_log_scale=-7.0).loss(parameters, images, 1.0)
    loss.backward()
    assert loss.isfinite() and parameters.grad.isfinite().all()


def test_logistic_gradient_is_that_of_float64_arithmetic() -> None:
    torch.manual_seed(0)
    likelihood = DiscretizedLogistic(min_log_scale=-7.0)
    parameters = torch.randn(2, 6, 4, 5)
    pixels = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    pixels[0, 0, 0, :2] = torch.tensor([0, 255])
    single, double = parameters.clone().requires_grad_(), parameters.double().requires_grad_()
    likelihood.loss(single, pixels.float() / 127.5 - 1, 1.0).backward()
    (likelihood.nll(double, pixels).mean() / 60).backward()
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-7)


def test_log_scales_below_the_minimum_count_as_the_minimum() -> None:
    low, least = (every_value(DiscretizedLogistic(min_log_scale=-4.0), 0.2, s) for s in (-9.0, -4.0))
    np.testing.assert_array_equal(low, least)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.6])
def test_fit_recovers_a_known_scale(scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    mu = torch.rand(4, 3, 100, 100, generator=random) * 2 - 1
    x = mu + scale * torch.randn(mu.shape, generator=random)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    likelihood = Gaussian(fit_images=4)
    likelihood.fit((mu[i : i + 1], pixels[i : i + 1]) for i in range(4))
    assert likelihood.log_scale.exp().item() == pytest.approx(scale, rel=0.01)


def test_fit_finds_the_smallest_nll() -> None:
    random = torch.Generator().manual_seed(1)
    mu = torch.rand(1, 1, 30, 30, generator=random) * 2 - 1
    pixels = torch.randint(256, mu.shape, generator=random, dtype=torch.uint8)
    likelihood = Gaussian(fit_images=1)
    likelihood.fit([(mu, pixels)])
    best = likelihood.log_scale.item()
    nll = [gaussian(math.exp(best + delta)).nll(mu, pixels).item() for delta in (-0.05, 0, 0.05)]
    assert nll[1] == min(nll)


def test_fit_survives_a_perfect_reconstruction() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    likelihood = Gaussian(fit_images=1)
    likelihood.fit([(pixels.float() / 127.5 - 1, pixels)])
    assert likelihood.nll(pixels.float() / 127.5 - 1, pixels).item() == pytest.approx(0, abs=1e-3)


def test_a_distribution_spread_far_wider_than_the_pixels_costs_one_bit_a_dimension() -> None:
    """Half of the mass lies in either tail, which the values 0 and 255 own."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    bits = gaussian(1e7).nll(torch.zeros(1, 1, 1, 2), pixels) / (2 * math.log(2))
    assert bits.item() == pytest.approx(1, abs=1e-6)


def test_nll_adds_up_the_dimensions_of_each_image() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (3, 2, 4, 5), dtype=torch.uint8)
    for name, options, channels in (("gaussian", {"fit_images": 1}, 2), ("discretized_logistic", {}, 4)):
        options = options or {"min_log_scale": -7.0}
        likelihood = build_likelihood({"name": name, name: options})
        assert likelihood.parameter_channels(2) == channels
        parameters = torch.randn(3, channels, 4, 5)
        nll = likelihood.nll(parameters, pixels)
        assert nll.shape == (3,) and nll.dtype == torch.float64
        torch.testing.assert_close(nll, -likelihood.log_prob(parameters, pixels).sum((1, 2, 3)))
        mean = likelihood.mean(parameters)
        torch.testing.assert_close(mean, parameters[:, :2].clamp(-1, 1))


def test_gaussian_loss_is_the_nmse() -> None:
    torch.manual_seed(0)
    mu, images = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = np.square((mu - images).numpy()).mean() / 0.25
    assert Gaussian(fit_images=1).loss(mu, images, 0.25).item() == pytest.approx(expected, rel=1e-6)
